"""The operators' commands: search, replay and cancel, over HTTP, as any other client.

What is for pipes goes to standard output, all else to standard error. A bulk action belongs to the
service: when the command is interrupted, it goes on, and the same request id follows it again.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tenacity import RetryError

from wds.cli.api_client import ComeBackError, patiently, progress
from wds.domain.errors import WdsError
from wds.storage.event_queries import NEWEST_FIRST, OLDEST_FIRST

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from wds.domain.operator_actions import Action

LOOK_EVERY_S = 0.5
STREAMED = (NEWEST_FIRST, OLDEST_FIRST)
"""Orders in which all that matches can be had; others are paged, for a table or up to a limit."""
PAGE_MOST = 500
"""Most events in a page of a search."""
PIPE_COLUMNS = 240
"""Width of a table that goes into a pipe, where nobody's window is narrow."""
_COME_BACK = {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}
_STYLES = {"DELIVERED": "green", "FAILED_PERMANENTLY": "red", "DELIVERING": "yellow"}


class RemoteError(WdsError):
    """The service refused, or does not answer; the message says why.

    Attributes:
        status: of the answer; None if there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        """Take the sentence to print."""
        super().__init__(message)
        self.status = status


class Ago(str):
    """An instant as ISO 8601 that was given as how long ago: another one at each run."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Target:
    """Which service, and the token that opens it, if it has one."""

    url: str
    token: str | None


class Service:
    """Asks one service. Every request is safe to repeat, so what fails on the way is repeated."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        """`url` is where the ingest service is, without a path."""
        self._session = session
        self._url = url.rstrip("/")

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON that is answered.

        Raises:
            RemoteError: with the service's own reason.
        """
        return json.loads(await self.text(method, path, body))

    async def text(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """Return what is answered, as it is.

        Raises:
            RemoteError: with the service's own reason.
        """

        async def once() -> bytes:
            async with self._session.request(method, self._url + path, json=body) as response:
                if response.status in _COME_BACK:
                    raise ComeBackError(await _reason(response))
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise RemoteError(await _reason(response), response.status)
                return await response.read()

        try:
            return await patiently()(once)
        except RetryError as error:
            cause = error.last_attempt.exception()
            msg = f"{self._url} does not answer: {cause or type(cause).__name__}"
            raise RemoteError(msg) from cause

    async def lines(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """Yield the lines that are answered.

        Raises:
            RemoteError: with the service's own reason, or because not all of it came.
        """
        try:
            async with self._session.post(self._url + path, json=body) as response:
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise RemoteError(await _reason(response), response.status)
                buffer = b""
                async for chunk in response.content.iter_any():
                    *whole, buffer = (buffer + chunk).split(b"\n")
                    for line in whole:
                        yield line
        except (aiohttp.ClientError, TimeoutError) as error:
            msg = f"the answer of {self._url} ended early: {error or type(error).__name__}"
            raise RemoteError(msg) from error


@asynccontextmanager
async def connected(target: Target) -> AsyncIterator[Service]:
    """Give a service to ask inside the block."""
    headers = {} if target.token is None else {"Authorization": f"Bearer {target.token}"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        yield Service(session, target.url)


async def _reason(response: aiohttp.ClientResponse) -> str:
    try:
        error = (await response.json(content_type=None))["error"]
        details = "; ".join(f"{each['field']}: {each['message']}" for each in error["details"])
        return f"{response.status} {error['code']}: {details or error['message']}"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status} without a reason: is this a wds ingest service?"


# -- search ----------------------------------------------------------------------------------


async def search(
    target: Target,
    filters: Mapping[str, Any],
    *,
    sort: str,
    limit: int | None,
    payload: bool,
    as_table: bool,
) -> int:
    """Print what matches: a table with totals, or an event a line as JSON; `limit` None is all.

    Payloads are printed as they were received, but for line breaks, which are white space in JSON:
    read and written again, they could be another text, or none (lone surrogates, 1e400).

    Raises:
        RemoteError: nothing, or not all, was printed.
    """
    async with connected(target) as service:
        if as_table:
            pages = _pages(service, {**filters, "sort": sort}, limit or 50)
            _print_table([page async for page in pages])
            return 0
        asked = {**filters, "sort": sort}
        if sort in STREAMED:
            lines = service.lines("/webhooks/export", {**asked, "include_payload": payload})
        else:
            lines = _paged_lines(service, asked, limit or 50, payload=payload)
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
            # `| head` has seen enough. What is left in the buffer must go nowhere at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


async def _paged_lines(
    service: Service, asked: Mapping[str, Any], limit: int, *, payload: bool
) -> AsyncGenerator[bytes, None]:
    """Yield an event a line, in an order that is not streamed."""
    async for page in _pages(service, {**asked, "aggregations": False}, limit):
        for event in page["events"]:
            if payload:
                whole = await service.text("GET", f"/webhooks/events/{event['id']}")
                yield whole.replace(b"\n", b" ").replace(b"\r", b" ")
            else:
                yield json.dumps(event, separators=(",", ":")).encode()


async def _pages(
    service: Service, asked: Mapping[str, Any], limit: int
) -> AsyncIterator[Mapping[str, Any]]:
    """Yield the pages of a search with `limit` events in all, if so many match."""
    more: dict[str, Any] = {}
    while True:
        page = {**asked, **more, "limit": min(limit, PAGE_MOST)}
        answer = await service.ask("POST", "/webhooks/search", page)
        yield answer
        limit -= len(answer["events"])
        if not limit or answer["next_cursor"] is None:
            break
        more = {"cursor": answer["next_cursor"], "aggregations": False}


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
        said = "" if last is None else str(last["status_code"] or last["error"])
        # As Text: what senders and downstreams wrote is shown, never taken for markup.
        table.add_row(
            Text(event["received_at"][:19].replace("T", " ")),
            Text(event["id"]),
            Text(event["event_type"] or ""),
            Text(event["status"], style=_STYLES.get(event["status"], "cyan")),
            str(event["attempt_count"]),
            Text(said),
        )
    console.print(table)
    by_status = pages[0]["aggregations"]["by_status"]
    counts = ", ".join(f"{count:,} {name}" for name, count in by_status.items() if count)
    shown, total = len(events), pages[0]["total"]
    console.print(f"{shown:,} of {total:,} shown" + (f": {counts}" if counts else ""))


# -- replay and cancel -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be done to which events, and how."""

    action: Action
    ids: Sequence[str]
    filters: Mapping[str, Any]
    instruction: Mapping[str, Any]
    extras: Mapping[str, Any]
    dry_run: bool = False
    confirmed: bool = False


async def change(target: Target, wanted: Change) -> int:
    """Replay or cancel; return the exit status: 0 if all of it was done, else 1.

    Raises:
        RemoteError: the service refused the whole.
    """
    async with connected(target) as service:
        if wanted.ids:
            return await _change_each(service, wanted)
        return await _change_all(service, wanted)


async def _change_each(service: Service, wanted: Change) -> int:
    failed = 0
    instruction = {"request_id": secrets.token_hex(16), **wanted.instruction}
    for event_id in wanted.ids:
        path = f"/webhooks/events/{quote(event_id, safe='')}/{wanted.action}"
        try:
            answer = await service.ask("POST", path, instruction)
        except RemoteError as error:
            failed += 1
            print(f"{event_id} {error}", file=sys.stderr)
            continue
        said = "ends with the attempt under way" if answer["cancelling"] else answer["status"]
        print(f"{event_id} {said}")
    return 1 if failed else 0


async def _change_all(service: Service, wanted: Change) -> int:
    console = Console(stderr=True)
    path = f"/webhooks/{wanted.action}"
    asked = {**wanted.filters, **wanted.instruction, **wanted.extras}
    if "request_id" in asked and not wanted.dry_run:
        begun = await _begun(service, asked["request_id"])
        if begun is not None and _is_same(begun, wanted):
            return await _follow(service, begun, console)
    if wanted.dry_run or not wanted.confirmed:
        counted = await service.ask("POST", path, {**asked, "dry_run": True})
        console.print(_counted(counted, wanted))
        if wanted.dry_run:
            return 0
        if not await _confirmed(f"{wanted.action} them? [y/N] "):
            console.print("nothing was done")
            return 1
    asked.setdefault("request_id", secrets.token_hex(16))
    return await _follow(service, await service.ask("POST", path, asked), console)


async def _begun(service: Service, request_id: str) -> Mapping[str, Any] | None:
    """Return the bulk action that has this id, None if there is none."""
    try:
        found: Mapping[str, Any] = await service.ask("GET", _bulk_path(request_id))
    except RemoteError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return None
    return found


def _is_same(begun: Mapping[str, Any], wanted: Change) -> bool:
    """Tell whether this is what the same command began, at another time maybe.

    The service cannot: to it, how long ago is an instant like any other.
    """
    then = begun["filters"]
    same_filters = then.keys() == wanted.filters.keys() and all(
        isinstance(value, Ago) or value == then[name] for name, value in wanted.filters.items()
    )
    extras = {"limit": None, **wanted.extras}
    same_extras = all(begun[name] == value for name, value in extras.items())
    return begun["action"] == wanted.action and same_filters and same_extras


def _bulk_path(request_id: str) -> str:
    return f"/webhooks/bulk/{quote(request_id, safe='')}"


def _counted(answer: Mapping[str, Any], wanted: Change) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in answer["by_status"].items())
    text = f"{answer['matched']:,} events match" + (f": {counts}" if counts else "")
    limit = wanted.extras.get("limit")
    return text if limit is None else f"{text}; at most {limit:,} of them, the oldest first"


async def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        msg = "not a terminal to ask: add --yes to go ahead, or --dry-run to count"
        raise RemoteError(msg)
    answer = await asyncio.to_thread(input, question)
    return answer.strip().lower() in {"y", "yes"}


async def _follow(service: Service, begun: Mapping[str, Any], console: Console) -> int:
    """Show how a bulk action goes until it ends."""
    console.print(
        f"request id {begun['request_id']}", highlight=False, markup=False, soft_wrap=True
    )
    bar = progress(begun["action"], console)
    known = [count for count in (begun["matched"], begun["limit"]) if count is not None]
    total = min(known, default=None)
    path = _bulk_path(begun["request_id"])
    seen = begun
    try:
        with bar:
            task = bar.add_task("", total=total)
            while seen["state"] == "running":
                await asyncio.sleep(LOOK_EVERY_S)
                seen = await service.ask("GET", path)
                bar.update(
                    task,
                    completed=seen["examined"],
                    total=total and max(total, seen["examined"]),
                )
    except asyncio.CancelledError:
        console.print("it goes on without this command; the same --request-id follows it again")
        raise
    print(f"{seen['state']}: {seen['changed']:,} changed, {seen['skipped']:,} skipped")
    return 0 if seen["state"] == "done" else 1
