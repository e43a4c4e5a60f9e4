"""`python -m wds replay` and `cancel`: events by id, or all that match filters.

A bulk action runs in the service. It goes on when the command is interrupted, and the same request
id shows its progress again.
"""

from __future__ import annotations

import asyncio
import getpass
import secrets
import socket
import sys
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rich.console import Console

from wds.cli.api_client import ApiError, Service, connected
from wds.cli.operator_arguments import RelativeInstant, filters, present_options
from wds.cli.progress import progress_bar
from wds.domain.errors import SettingsError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping, Sequence

    from wds.cli.api_client import ApiClient
    from wds.domain.operator_actions import Action

POLL_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Change:
    """A replay or cancel of the events with `ids`, or of all that match `filters`.

    Attributes:
        instruction: `by`, and `reason` and `request_id` if given.
        options: `limit` and `per_second` of a bulk action, if given.
        confirmed: do not ask before a bulk action.
    """

    action: Action
    ids: Sequence[str]
    filters: Mapping[str, Any]
    instruction: Mapping[str, Any]
    options: Mapping[str, Any]
    dry_run: bool
    confirmed: bool


def run(arguments: Namespace, environ: Mapping[str, str]) -> int:
    """Replay or cancel; return the exit status: 0 if every event was changed, else 1.

    Raises:
        SettingsError: a setting is malformed, or the arguments contradict each other.
        ApiError: the service refused the whole request.
    """
    by = arguments.by or f"{getpass.getuser()}@{socket.gethostname()}"
    change = Change(
        action=arguments.action,
        ids=arguments.ids,
        filters=filters(arguments),
        instruction={"by": by, **present_options(arguments, "reason", "request_id")},
        options=present_options(arguments, "limit", "per_second"),
        dry_run=arguments.dry_run,
        confirmed=arguments.yes,
    )
    if change.ids and (change.filters or change.options or change.dry_run):
        raise SettingsError(["give ids or filters, not both; the other options are for filters"])
    if not change.ids and not change.filters:
        raise SettingsError(["give ids, or at least one filter; --from 1970-01-01 means all"])
    return asyncio.run(_apply(Service.at(arguments.url, environ), change))


async def _apply(service: Service, change: Change) -> int:
    async with connected(service) as client:
        return await (_change_by_id if change.ids else _change_matching)(client, change)


async def _change_by_id(client: ApiClient, change: Change) -> int:
    failed = 0
    instruction = {"request_id": secrets.token_hex(16), **change.instruction}
    for event_id in change.ids:
        path = f"/webhooks/events/{quote(event_id, safe='')}/{change.action}"
        try:
            answer = await client.request_json("POST", path, instruction)
        except ApiError as error:
            failed += 1
            print(f"{event_id} {error}", file=sys.stderr)
            continue
        result = "ends with the attempt under way" if answer["cancelling"] else answer["status"]
        print(f"{event_id} {result}")
    return 1 if failed else 0


async def _change_matching(client: ApiClient, change: Change) -> int:
    console = Console(stderr=True)
    path = f"/webhooks/{change.action}"
    request = {**change.filters, **change.instruction, **change.options}
    if "request_id" in request and not change.dry_run:
        bulk_action = await _find_bulk_action(client, request["request_id"])
        if bulk_action is not None and _is_same(bulk_action, change):
            return await _follow(client, bulk_action, console)
    if change.dry_run or not change.confirmed:
        counts = await client.request_json("POST", path, {**request, "dry_run": True})
        console.print(_describe_counts(counts, change))
        if change.dry_run:
            return 0
        if not await _confirm(f"{change.action} them? [y/N] "):
            console.print("nothing was done")
            return 1
    request.setdefault("request_id", secrets.token_hex(16))
    return await _follow(client, await client.request_json("POST", path, request), console)


async def _find_bulk_action(client: ApiClient, request_id: str) -> Mapping[str, Any] | None:
    """Return the bulk action with this request id, None if there is none."""
    try:
        bulk_action: Mapping[str, Any] = await client.request_json("GET", _bulk_path(request_id))
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return None
    return bulk_action


def _is_same(bulk_action: Mapping[str, Any], change: Change) -> bool:
    """Tell whether an earlier run of the same command started `bulk_action`.

    The service cannot recognise that: a time span before now reaches it as an instant, which
    differs in each run.
    """
    earlier = bulk_action["filters"]
    same_filters = earlier.keys() == change.filters.keys() and all(
        isinstance(value, RelativeInstant) or value == earlier[name]
        for name, value in change.filters.items()
    )
    options = {"limit": None, **change.options}
    same_options = all(bulk_action[name] == value for name, value in options.items())
    return bulk_action["action"] == change.action and same_filters and same_options


def _bulk_path(request_id: str) -> str:
    return f"/webhooks/bulk/{quote(request_id, safe='')}"


def _describe_counts(counts: Mapping[str, Any], change: Change) -> str:
    by_status = ", ".join(f"{count:,} {name}" for name, count in counts["by_status"].items())
    text = f"{counts['matched']:,} events match" + (f": {by_status}" if by_status else "")
    limit = change.options.get("limit")
    return text if limit is None else f"{text}; at most {limit:,} of them, the oldest first"


async def _confirm(question: str) -> bool:
    if not sys.stdin.isatty():
        msg = "not a terminal to ask: add --yes to go ahead, or --dry-run to count"
        raise ApiError(msg)
    answer = await asyncio.to_thread(input, question)
    return answer.strip().lower() in {"y", "yes"}


async def _follow(client: ApiClient, bulk_action: Mapping[str, Any], console: Console) -> int:
    """Show the progress of a bulk action until it ends; return the exit status."""
    request_id = bulk_action["request_id"]
    console.print(f"request id {request_id}", highlight=False, markup=False, soft_wrap=True)
    bar = progress_bar(bulk_action["action"], console)
    known = [count for count in (bulk_action["matched"], bulk_action["limit"]) if count is not None]
    total = min(known, default=None)
    try:
        with bar:
            task = bar.add_task("", total=total)
            while bulk_action["state"] == "running":
                await asyncio.sleep(POLL_INTERVAL_S)
                bulk_action = await client.request_json("GET", _bulk_path(request_id))
                examined = bulk_action["examined"]
                bar.update(task, completed=examined, total=total and max(total, examined))
    except asyncio.CancelledError:
        console.print("it goes on without this command; the same --request-id follows it again")
        raise
    print(
        f"{bulk_action['state']}: {bulk_action['changed']:,} changed,"
        f" {bulk_action['skipped']:,} skipped"
    )
    return 0 if bulk_action["state"] == "done" else 1
