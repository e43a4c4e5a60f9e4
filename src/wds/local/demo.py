"""`python -m wds demo`: the whole system on this machine, 20 events, and the result of each."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import time
from typing import TYPE_CHECKING, Any

import aiohttp
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from wds.cli import sample_events
from wds.cli.parser import DEMO_DATA_DIR
from wds.cli.send import Posting, Sender
from wds.cli.service_runner import run_until_signal
from wds.config import NAMES, Settings
from wds.domain.deliveries import Status
from wds.domain.errors import WdsError
from wds.ingestion import sources
from wds.local import embedded_engines
from wds.local.stack import running

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping
    from pathlib import Path

EVENTS = 20
BATCH = 6
TIMEOUT_S = 90.0
POLL_INTERVAL_S = 0.25
_FINAL = {Status.DELIVERED, Status.FAILED_PERMANENTLY}
_COLOURS = {
    Status.RECEIVED: "cyan",
    Status.DELIVERING: "yellow",
    Status.DELIVERED: "green",
    Status.FAILED_PERMANENTLY: "red",
}


class DemoFailedError(WdsError):
    """The demonstration had an unexpected result; the message says which."""


def run(arguments: Namespace, environ: Mapping[str, str]) -> int:
    """Run the demonstration; return the exit status.

    Raises:
        StartError: a part did not start.
        DemoFailedError: see `demo`.
    """
    environ = _demo_environ(environ)
    settings = Settings.load(environ)

    async def show(_: asyncio.Event) -> None:
        data_dir: Path = arguments.data_dir
        if data_dir == DEMO_DATA_DIR:  # another directory may hold something else
            shutil.rmtree(data_dir, ignore_errors=True)
        data_dir.mkdir(parents=True, exist_ok=True)
        await demo(
            settings, environ, dispatchers=arguments.dispatchers, data_dir=data_dir.resolve()
        )

    return run_until_signal(show, cancel=True)


def _demo_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` with the demonstration's own settings in place of all others.

    The user's settings are set to the empty text, which counts as unset, because the child
    processes would read them from `.env` otherwise: a demonstration must never touch a database
    that is in use.
    """
    return {
        **environ,
        **dict.fromkeys(NAMES, ""),
        "WDS_HMAC_SECRET": secrets.token_hex(32),
        "WDS_PORT": str(embedded_engines.free_port()),
        "WDS_MOCK_PORT": str(embedded_engines.free_port()),
        "WDS_METRICS_PORT": "0",
        "WDS_MOCK_SEED": "7",
        "WDS_CONFIG": os.devnull,
    }


async def demo(
    settings: Settings, environ: Mapping[str, str], *, dispatchers: int, data_dir: Path
) -> None:
    """Start everything, send `EVENTS` events, show their progress, and stop everything.

    Raises:
        StartError: a part did not start.
        DemoFailedError: an answer had an unexpected status, or not every event became final
            within `TIMEOUT_S`.
    """
    console = Console()
    log_file = data_dir / "wds.log"
    console.print(f"Starting mongod, redis-server, mock, ingest, {dispatchers} dispatchers ...")
    with log_file.open("w") as log:
        async with (
            running(
                settings,
                environ,
                dispatchers=dispatchers,
                data_dir=data_dir,
                print_line=lambda line: print(line, file=log, flush=True),
            ) as stack,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
        ):
            ids = await _send(session, stack.ingest_url, settings.hmac_secrets[0], console)
            events = await _watch(session, stack.ingest_url, ids, settings, console)
            async with session.get(f"{stack.mock_url}/downstream/stats") as response:
                stats = await response.json()
            totals = await _fleet_totals(session, stack.ingest_url, len(ids))
    _show(console, events, stats, totals, settings)
    console.print(f"Logs of every part: {log_file}")
    unfinished = [event["id"] for event in events if event["status"] not in _FINAL]
    if unfinished:
        msg = f"{len(unfinished)} events were not final within {TIMEOUT_S:g} s"
        raise DemoFailedError(msg)


async def _send(
    session: aiohttp.ClientSession, url: str, secret: str, console: Console
) -> list[str]:
    """Send the events, one by one and in a batch; return their ids, in order of sending.

    Then send a repeated event and a forged signature, which add no event.
    """
    sender = Sender(session, f"{url}/webhooks/ingest", sources.default_source((secret,)))
    batch = list(sample_events.generate(BATCH, seed=2))
    singles = list(sample_events.generate(EVENTS - BATCH, seed=1))
    ids = []
    run = secrets.token_hex(4)
    for number, sample in enumerate(singles):
        answer = await sender.post(Posting(sample.body, f"{run}-{number}", sample.event_type))
        _expect(answer.status, 202, "a signed event")
        ids.append(answer.body["id"])
    body = b"[" + b",".join(sample.body for sample in batch) + b"]"
    answer = await sender.post(Posting(body, f"{run}-batch"), path="/batch")
    _expect(answer.status, 202, "a batch")
    ids += [event["id"] for event in answer.body["events"]]
    repeat = await sender.post(Posting(singles[0].body, f"{run}-0", singles[0].event_type))
    _expect(repeat.status, 200, "a repeat")
    forged = await sender.post(Posting(singles[1].body, f"{run}-forged"), forge=True)
    _expect(forged.status, 401, "a forged signature")
    console.print(
        f"Sent {len(singles)} events singly and {BATCH} in a batch (202); repeated an idempotency"
        f" key ({repeat.status}, same id); forged a signature ({forged.status}, nothing stored)."
    )
    return ids


def _expect(status: int, expected: int, request: str) -> None:
    if status != expected:
        msg = f"{request} was answered with {status} instead of {expected}"
        raise DemoFailedError(msg)


async def _watch(
    session: aiohttp.ClientSession,
    url: str,
    ids: list[str],
    settings: Settings,
    console: Console,
) -> list[dict[str, Any]]:
    """Show progress until every event is final or the time is over; return the events then."""
    bar = Progress(
        TextColumn("delivered or failed"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )
    task = bar.add_task("final", total=len(ids))
    deadline = time.monotonic() + TIMEOUT_S
    last_line = ""
    with Live(bar, console=console, refresh_per_second=8, transient=True) as live:
        while True:
            events = await _search(session, url, settings)
            mine = sorted(
                (event for event in events if event["id"] in ids),
                key=lambda event: ids.index(event["id"]),
            )
            done = sum(event["status"] in _FINAL for event in mine)
            bar.update(task, completed=done)
            line = _summary(mine)
            live.update(Group(bar, line))
            if not console.is_terminal and line.plain != last_line:
                console.print(line)
                last_line = line.plain
            if done == len(ids) or time.monotonic() > deadline:
                return mine
            await asyncio.sleep(POLL_INTERVAL_S)


async def _search(
    session: aiohttp.ClientSession, url: str, settings: Settings
) -> list[dict[str, Any]]:
    headers = {}
    if settings.operator_token:
        headers["Authorization"] = f"Bearer {settings.operator_token}"
    query = {"limit": 500, "aggregations": False}
    async with session.post(f"{url}/webhooks/search", json=query, headers=headers) as response:
        answer = await response.json()
    _expect(response.status, 200, "a search")
    events: list[dict[str, Any]] = answer["events"]
    return events


async def _fleet_totals(
    session: aiohttp.ClientSession, url: str, received: int
) -> dict[str, float]:
    """Return the totals of all replicas, once the heartbeats have reported every event."""
    totals: dict[str, float] = {}
    for _ in range(40):
        async with session.get(f"{url}/metrics") as response:
            lines = (await response.text()).splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("wds_fleet_"))
        totals = {name: float(value) for name, value in pairs}
        ended = totals.get("wds_fleet_deliveries_succeeded_total", 0) + totals.get(
            "wds_fleet_deliveries_failed_total", 0
        )
        if ended >= received and totals.get("wds_fleet_events_received_total", 0) >= received:
            break
        await asyncio.sleep(POLL_INTERVAL_S)
    return totals


def _summary(events: list[dict[str, Any]]) -> Text:
    text = Text()
    for status, colour in _COLOURS.items():
        count = sum(event["status"] == status for event in events)
        text.append(f"{status.lower()} {count}  ", style=colour)
    attempts = sum(len(event["attempts"]) for event in events)
    return text.append(f"attempts {attempts}")


def _show(
    console: Console,
    events: list[dict[str, Any]],
    stats: Mapping[str, Any],
    totals: Mapping[str, float],
    settings: Settings,
) -> None:
    table = Table(title="Result of each event")
    for column in ("event", "type", "status"):
        table.add_column(column, no_wrap=True)
    table.add_column("answers", overflow="fold")
    for event in events:
        answers = [str(each["status_code"] or each["outcome"]) for each in event["attempts"]]
        status = Text(event["status"], style=_COLOURS[Status(event["status"])])
        table.add_row(event["id"], event["event_type"], status, " ".join(answers))
    console.print(table)
    console.print("The receiver's own count: " + ", ".join(f"{k} {v}" for k, v in stats.items()))
    console.print(
        "Totals of all replicas: "
        + ", ".join(
            f"{name.removeprefix('wds_fleet_').removesuffix('_total')} {value:g}"
            for name, value in totals.items()
            if name.endswith("_total")
        )
    )
    here = f"http://{settings.host}:{Settings().port}"
    console.print(
        "\nEverything has been stopped again. Keep it running with [bold]make up[/bold], then look"
        f" at\n  {here}/docs              the API, to try in the browser"
        f"\n  {here}/webhooks/search   POST filters; find and count events"
        f"\n  {here}/metrics           for Prometheus",
        highlight=False,
    )
