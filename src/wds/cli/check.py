"""`python -m wds check`: compare every event in the database with the guarantees."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import TimeRemainingColumn
from rich.table import Table

from wds.cli.progress import progress_bar
from wds.config import Settings
from wds.domain.invariants import INVARIANTS, Expectations, violations
from wds.storage.store import Store

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

EXAMPLES = 3
"""Event ids that the report names for each violated invariant."""


def run(arguments: Namespace, environ: Mapping[str, str]) -> int:
    """Check and print a report; return the exit status: 0 without violations, else 1.

    Raises:
        SettingsError: a setting is malformed, or WDS_MONGO_URL is not set.
        StoreUnavailableError: the database did not answer.
    """
    settings = Settings.load(environ, require=("WDS_MONGO_URL",))
    violation_count = asyncio.run(
        check(settings, overdue_s=arguments.overdue, payloads=arguments.payloads)
    )
    return 1 if violation_count else 0


async def check(settings: Settings, *, overdue_s: float, payloads: bool) -> int:
    """Check the whole collection and print a report; return the number of violations.

    `payloads` also reads every payload and compares its hash. Only reads; safe at any time.

    Raises:
        StoreUnavailableError: the database did not answer.
    """
    store = Store(settings.mongo_url or "", settings.mongo_db)
    bar = progress_bar("checking", Console(stderr=True), TimeRemainingColumn())
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    checked = 0
    try:
        await store.open()
        with bar:
            task = bar.add_task("checking", total=await store.reader.estimated_count())
            async for page in store.reader.scan(payloads=payloads):
                expected = Expectations(
                    now=await store.now(),
                    max_attempts=settings.max_attempts,
                    schedule=settings.backoff,
                    overdue_s=overdue_s,
                )
                for event in page:
                    for name in violations(event, expected):
                        counts[name] += 1
                        examples.setdefault(name, []).append(event["_id"])
                        del examples[name][EXAMPLES:]
                checked += len(page)
                bar.update(task, completed=checked)
    finally:
        await store.close()
    _report(checked, counts, examples)
    return counts.total()


def _report(checked: int, counts: Counter[str], examples: dict[str, list[str]]) -> None:
    console = Console()
    table = Table(title=f"{checked:,} events checked", show_lines=False)
    table.add_column("invariant", overflow="fold")
    table.add_column("violations", justify="right")
    table.add_column("for example", overflow="fold")
    for name, meaning in INVARIANTS.items():
        count = counts[name]
        ids = ", ".join(examples.get(name, []))
        table.add_row(meaning, str(count), ids, style="bold red" if count else None)
    console.print(table)
    total = counts.total()
    console.print("all invariants hold" if not total else f"{total} violations")
