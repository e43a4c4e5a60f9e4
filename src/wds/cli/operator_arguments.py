"""`search`, `replay` and `cancel` on the command line: their arguments, and what they run."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import re
import socket
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from wds.cli import remote
from wds.config import Settings, local_host
from wds.domain.deliveries import Status
from wds.domain.errors import SettingsError
from wds.domain.event_filter import NEWEST_FIRST, SORTS, WIRE_NAMES
from wds.domain.operator_actions import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Add = Callable[[str, Any, str], argparse.ArgumentParser]

_AGO = re.compile(r"(\d{1,9})([smhd])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def add(command: Add) -> None:
    """Add the commands by `command(name, run, help)`, which returns the parser of one."""
    look = command("search", _search, "list events as a table, or as JSON lines for pipes")
    _add_target(look)
    _add_filters(look)
    look.add_argument("--sort", choices=list(SORTS), default=NEWEST_FIRST)
    look.add_argument("--limit", type=positive, metavar="N", help="default: 50 in a table")
    look.add_argument(
        "--json", action="store_true", help="an event a line; all that match unless --limit"
    )
    look.add_argument("--payload", action="store_true", help="with --json: payloads too")
    for action, text in (
        (Action.REPLAY, "deliver events again, by id or all that match"),
        (Action.CANCEL, "stop retrying events, by id or all that match"),
    ):
        added = command(str(action), _change, text)
        added.set_defaults(action=action)
        added.add_argument("ids", nargs="*", metavar="ID", help="events; else give filters")
        _add_target(added)
        _add_filters(added)
        _add_instruction(added)
        if action is Action.REPLAY:
            added.add_argument(
                "--per-second",
                type=float,
                metavar="N",
                help="how many become due a second; 0: at once; default: half of the limit",
            )


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="default: http://WDS_HOST:WDS_PORT")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    filters = parser.add_argument_group("filters", "all of them must fit")
    several: dict[str, Any] = {"action": "append"}
    filters.add_argument("--status", choices=[str(status) for status in Status], **several)
    for name in ("event-type", "source", "destination"):
        filters.add_argument(f"--{name}", metavar="NAME", help="may be repeated", **several)
    filters.add_argument(
        "--last-status-code", type=int, metavar="CODE", help="0: no answer", **several
    )
    filters.add_argument("--idempotency-key", metavar="KEY")
    filters.add_argument("--id-prefix", metavar="HEX")
    filters.add_argument("--min-attempts", type=int, metavar="N")
    for name, text in (("from", "received at or after"), ("to", "received before")):
        filters.add_argument(
            f"--{name}",
            dest=name,
            type=_instant,
            metavar="WHEN",
            help=f"{text}: ISO 8601, or how long ago, as 30m, 2h or 7d",
        )


def _add_instruction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only count what matches")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--limit", type=positive, metavar="N", help="the oldest N of them")
    parser.add_argument("--reason", help="kept in the history of each event")
    parser.add_argument("--by", help="kept likewise; default: user@host")
    parser.add_argument("--request-id", help="the same again does nothing twice, and follows it")


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    values = vars(arguments)
    return {name: values[name] for name in names if values.get(name) is not None}


def _search(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if arguments.json and arguments.limit is None and arguments.sort not in remote.STREAMED:
        raise SettingsError([f"--sort {arguments.sort} needs --limit with --json"])
    if arguments.payload and not arguments.json:
        raise SettingsError(["--payload needs --json"])
    return asyncio.run(
        remote.search(
            _target(arguments, environ),
            _given(arguments, WIRE_NAMES),
            sort=arguments.sort,
            limit=arguments.limit,
            payload=arguments.payload,
            as_table=not arguments.json,
        )
    )


def _change(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    filters = _given(arguments, WIRE_NAMES)
    extras = _given(arguments, ("limit", "per_second"))
    if arguments.ids and (filters or extras or arguments.dry_run):
        raise SettingsError(["give ids or filters, not both; the other options are for filters"])
    if not arguments.ids and not filters:
        raise SettingsError(["give ids, or at least one filter; --from 1970-01-01 means all"])
    by = arguments.by or f"{getpass.getuser()}@{socket.gethostname()}"
    change = remote.Change(
        action=arguments.action,
        ids=arguments.ids,
        filters=filters,
        instruction={"by": by, **_given(arguments, ("reason", "request_id"))},
        extras=extras,
        dry_run=arguments.dry_run,
        confirmed=arguments.yes,
    )
    return asyncio.run(remote.change(_target(arguments, environ), change))


def _target(arguments: argparse.Namespace, environ: Mapping[str, str]) -> remote.Target:
    settings = Settings.load(environ)
    host = local_host(settings.host)
    host = f"[{host}]" if ":" in host else host
    url = arguments.url or f"http://{host}:{settings.port}"
    return remote.Target(url, settings.operator_token)


def _instant(text: str) -> str:
    """Return ISO 8601, of how long ago as `remote.Ago`; the service judges what is no instant."""
    ago = _AGO.fullmatch(text)
    if ago is None:
        return text
    try:
        since = timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return remote.Ago((datetime.now(UTC) - since).isoformat(timespec="milliseconds"))
    except OverflowError:
        msg = "too long ago"
        raise argparse.ArgumentTypeError(msg) from None


def positive(text: str) -> int:
    """Read an argument that is a whole number from 1 on."""
    value = int(text)
    if value < 1:
        msg = "must be at least 1"
        raise argparse.ArgumentTypeError(msg)
    return value
