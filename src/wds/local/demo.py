"""A first look: the whole system on this machine, twenty events, and what became of each."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any

import aiohttp
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from wds.cli.send import Posting, Sender
from wds.config import Settings
from wds.domain.deliveries import Status
from wds.domain.errors import WdsError
from wds.ingestion import sources
from wds.local import sample_events
from wds.local.stack import running

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


EVENTS = 20
BATCH = 6
TIMEOUT_S = 90.0
LOOK_EVERY_S = 0.25
_FINAL = {Status.DELIVERED, Status.FAILED_PERMANENTLY}
_COLOURS = {
    Status.RECEIVED: "cyan",
    Status.DELIVERING: "yellow",
    Status.DELIVERED: "green",
    Status.FAILED_PERMANENTLY: "red",
}


class DemoFailedError(WdsError):
    """The demonstration did not show what it should; the message says what."""


async def demo(
    settings: Settings, environ: Mapping[str, str], *, dispatchers: int, data_dir: Path
) -> None:
    """Start everything, send `EVENTS` events, show them arrive, and stop everything.

    Raises:
        StartError: a part did not start.
        DemoFailedError: an answer was not as it must be, or not all were final in `TIMEOUT_S`.
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
                say=lambda line: print(line, file=log, flush=True),
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
    """Send the events singly and in a batch, then a repeat and a forgery that add none.

    Returns the ids, in order of sending.
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


def _expect(status: int, wanted: int, what: str) -> None:
    if status != wanted:
        msg = f"{what} was answered with {status} instead of {wanted}"
        raise DemoFailedError(msg)


async def _watch(
    session: aiohttp.ClientSession,
    url: str,
    ids: list[str],
    settings: Settings,
    console: Console,
) -> list[dict[str, Any]]:
    """Show progress until every event is final or time is up; return them as they stand."""
    bar = Progress(
        TextColumn("delivered or given up"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
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
            await asyncio.sleep(LOOK_EVERY_S)


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
    found: list[dict[str, Any]] = answer["events"]
    return found


async def _fleet_totals(
    session: aiohttp.ClientSession, url: str, received: int
) -> dict[str, float]:
    """Read the fleet's totals from the metrics, once the heartbeats have brought them all."""
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
        await asyncio.sleep(LOOK_EVERY_S)
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
    table = Table(title="What became of each event")
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
        "The fleet's totals: "
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
