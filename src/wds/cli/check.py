"""`python -m wds check`: hold every event in the database against the guarantees."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from wds.domain.invariants import INVARIANTS, Expectations, violations
from wds.storage.store import Store

if TYPE_CHECKING:
    from wds.config import Settings

EXAMPLES = 3
"""Event ids shown for each violated invariant."""


async def check(settings: Settings, *, overdue_s: float, payloads: bool) -> int:
    """Audit the whole collection and print a report; return how many violations there are.

    `payloads` reads every payload too and compares its hash. Reads only; safe at any time.

    Raises:
        StoreUnavailableError: the database went away meanwhile.
    """
    store = Store(settings.mongo_url or "", settings.mongo_db)
    console, progress = Console(), Console(stderr=True)
    bar = Progress(
        TextColumn("checking"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=progress,
        disable=not progress.is_terminal,
    )
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    seen = 0
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
                seen += len(page)
                bar.update(task, completed=seen)
    finally:
        await store.close()
    _report(console, seen, counts, examples)
    return counts.total()


def _report(
    console: Console, seen: int, counts: Counter[str], examples: dict[str, list[str]]
) -> None:
    table = Table(title=f"{seen:,} events checked", show_lines=False)
    table.add_column("invariant", overflow="fold")
    table.add_column("violations", justify="right")
    table.add_column("for example", overflow="fold")
    for name, meaning in INVARIANTS.items():
        count = counts[name]
        shown = ", ".join(examples.get(name, []))
        table.add_row(meaning, str(count), shown, style="bold red" if count else None)
    console.print(table)
    total = counts.total()
    console.print("all invariants hold" if not total else f"{total} violations")
