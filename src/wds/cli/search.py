"""`python -m wds search`: events as a table with totals, or as JSON lines for pipes.

The events go to standard output, all else to standard error.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wds.cli.api_client import Service, connected
from wds.cli.operator_arguments import filters
from wds.domain.errors import SettingsError
from wds.domain.event_filter import NEWEST_FIRST, OLDEST_FIRST

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from wds.cli.api_client import ApiClient

STREAMED_SORTS = (NEWEST_FIRST, OLDEST_FIRST)
"""Orders in which the service streams all that matches; the others are read page by page."""
MAX_PAGE = 500
"""Most events in a page of a search."""
DEFAULT_LIMIT = 50
PIPE_COLUMNS = 240
"""Width of a table that goes into a pipe, which has no window to fit."""
_STYLES = {"DELIVERED": "green", "FAILED_PERMANENTLY": "red", "DELIVERING": "yellow"}


def run(arguments: Namespace, environ: Mapping[str, str]) -> int:
    """Search and print; return the exit status.

    Raises:
        SettingsError: a setting is malformed, or two options contradict each other.
        ApiError: nothing, or not everything, was printed.
    """
    streamed = arguments.sort in STREAMED_SORTS
    if arguments.json and arguments.limit is None and not streamed:
        raise SettingsError([f"--sort {arguments.sort} needs --limit with --json"])
    if arguments.payload and not arguments.json:
        raise SettingsError(["--payload needs --json"])
    service = Service.at(arguments.url, environ)
    query = {**filters(arguments), "sort": arguments.sort}
    if arguments.json:
        asyncio.run(_search_as_json(service, query, arguments.limit, payload=arguments.payload))
    else:
        asyncio.run(_search_as_table(service, query, arguments.limit or DEFAULT_LIMIT))
    return 0


async def _search_as_table(service: Service, query: Mapping[str, Any], limit: int) -> None:
    async with connected(service) as client:
        _print_table([page async for page in _pages(client, query, limit)])


async def _search_as_json(
    service: Service, query: Mapping[str, Any], limit: int | None, *, payload: bool
) -> None:
    """Print one event per line; all that match if `limit` is None.

    Payloads are printed as they were received, except that line breaks, which are white space in
    JSON, become spaces. Parsing and writing them again could change them, or fail on them (lone
    surrogates, 1e400).
    """
    async with connected(service) as client:
        if query["sort"] in STREAMED_SORTS:
            lines = client.stream_lines("/webhooks/export", {**query, "include_payload": payload})
        else:
            lines = _paged_lines(client, query, limit or DEFAULT_LIMIT, payload=payload)
        try:
            async with aclosing(lines):
                async for line in lines:
                    sys.stdout.buffer.write(line + b"\n")
                    if limit is not None:
                        limit -= 1
                        if not limit:
                            break
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader, such as `head`, has ended. The rest of the buffer is discarded at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _paged_lines(
    client: ApiClient, query: Mapping[str, Any], limit: int, *, payload: bool
) -> AsyncGenerator[bytes, None]:
    """Yield one event per line, in an order that the service does not stream."""
    async for page in _pages(client, {**query, "aggregations": False}, limit):
        for event in page["events"]:
            if payload:
                text = await client.request_bytes("GET", f"/webhooks/events/{event['id']}")
                yield text.replace(b"\n", b" ").replace(b"\r", b" ")
            else:
                yield json.dumps(event, separators=(",", ":")).encode()


async def _pages(
    client: ApiClient, query: Mapping[str, Any], limit: int
) -> AsyncIterator[Mapping[str, Any]]:
    """Yield the pages of a search, with at most `limit` events in all."""
    position: dict[str, Any] = {}
    while True:
        request = {**query, **position, "limit": min(limit, MAX_PAGE)}
        page = await client.request_json("POST", "/webhooks/search", request)
        yield page
        limit -= len(page["events"])
        if not limit or page["next_cursor"] is None:
            break
        position = {"cursor": page["next_cursor"], "aggregations": False}


def _print_table(pages: Sequence[Mapping[str, Any]]) -> None:
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=PIPE_COLUMNS)
    table = Table(box=None, pad_edge=False)
    for name in ("received (UTC)", "id", "type", "status", "attempts", "last answer"):
        table.add_column(name, no_wrap=name in {"received (UTC)", "id", "status"}, overflow="fold")
    events = [event for page in pages for event in page["events"]]
    for event in events:
        last = event["attempts"][-1] if event["attempts"] else None
        answer = "" if last is None else str(last["status_code"] or last["error"])
        # As Text, because senders and downstreams wrote it: rich must not read it as markup.
        table.add_row(
            Text(event["received_at"][:19].replace("T", " ")),
            Text(event["id"]),
            Text(event["event_type"] or ""),
            Text(event["status"], style=_STYLES.get(event["status"], "cyan")),
            str(event["attempt_count"]),
            Text(answer),
        )
    console.print(table)
    by_status = pages[0]["aggregations"]["by_status"]
    counts = ", ".join(f"{count:,} {name}" for name, count in by_status.items() if count)
    shown, total = len(events), pages[0]["total"]
    console.print(f"{shown:,} of {total:,} shown" + (f": {counts}" if counts else ""))
