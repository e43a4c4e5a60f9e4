"""The arguments of `search`, `replay` and `cancel`.

Imported with the parser, so it imports nothing that talks to a service.
"""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from wds.domain.deliveries import Status
from wds.domain.event_filter import FILTERS, NEWEST_FIRST, SORTS, WIRE_NAMES, FilterKind, FilterSpec
from wds.domain.operator_actions import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Command = Callable[[str, str, str], argparse.ArgumentParser]

_AGO = re.compile(r"(\d{1,9})([smhd])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class RelativeInstant(str):
    """ISO 8601 of an instant, from an argument that is a time span before now; new in each run."""

    __slots__ = ()


def add_commands(command: Command) -> None:
    """Add the commands by `command(name, module, help)`, which returns the parser of one."""
    search = command("search", "wds.cli.search", "list events as a table, or as JSON lines")
    _add_url(search)
    _add_filters(search)
    search.add_argument("--sort", choices=SORTS, default=NEWEST_FIRST)
    search.add_argument("--limit", type=positive, metavar="N", help="default: 50 in a table")
    search.add_argument(
        "--json", action="store_true", help="one event per line; all that match unless --limit"
    )
    search.add_argument("--payload", action="store_true", help="with --json: payloads too")
    for action, text in (
        (Action.REPLAY, "deliver events again, by id or all that match"),
        (Action.CANCEL, "stop retrying events, by id or all that match"),
    ):
        change = command(str(action), "wds.cli.actions", text)
        change.set_defaults(action=action)
        change.add_argument("ids", nargs="*", metavar="ID", help="events; else give filters")
        _add_url(change)
        _add_filters(change)
        _add_instruction(change)
        if action is Action.REPLAY:
            change.add_argument(
                "--per-second",
                type=float,
                metavar="N",
                help="events that become due each second; 0: all at once; default: half the limit",
            )


def filters(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the filters on the command line, as the service's search takes them."""
    return present_options(arguments, *WIRE_NAMES)


def present_options(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return those of the options `names` that are on the command line."""
    values = vars(arguments)
    return {name: values[name] for name in names if values.get(name) is not None}


def positive(text: str) -> int:
    """Read an argument that is a whole number from 1 on."""
    value = int(text)
    if value < 1:
        msg = "must be at least 1"
        raise argparse.ArgumentTypeError(msg)
    return value


def _add_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="default: http://WDS_HOST:WDS_PORT")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filters", "an event must match all of them")
    for spec in FILTERS:
        name = spec.wire_name
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, **_filter_options(spec))


def _add_instruction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only count what matches")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--limit", type=positive, metavar="N", help="the oldest N of them")
    parser.add_argument("--reason", help="kept in the history of each event")
    parser.add_argument("--by", help="kept in the history too; default: user@host")
    parser.add_argument(
        "--request-id",
        help="repeated with the same id, the command changes nothing twice and shows the progress",
    )


def _instant(text: str) -> str:
    """Return ISO 8601 for a time span before now; the service validates any other text."""
    ago = _AGO.fullmatch(text)
    if ago is None:
        return text
    try:
        instant = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return RelativeInstant(instant.isoformat(timespec="milliseconds"))
    except OverflowError:
        msg = "too long ago"
        raise argparse.ArgumentTypeError(msg) from None


_OPTIONS: Mapping[FilterKind, dict[str, Any]] = {
    FilterKind.STATUS: {"choices": [str(status) for status in Status]},
    FilterKind.LABEL: {"metavar": "NAME"},
    FilterKind.STATUS_CODE: {"type": int, "metavar": "CODE"},
    FilterKind.KEY: {"metavar": "KEY"},
    FilterKind.ID_PREFIX: {"metavar": "HEX"},
    FilterKind.COUNT: {"type": int, "metavar": "N"},
    FilterKind.INSTANT: {"type": _instant, "metavar": "WHEN"},
}
"""Kind of a filter's values -> options of its argument."""


def _filter_options(spec: FilterSpec) -> dict[str, Any]:
    text = spec.description
    if spec.kind is FilterKind.INSTANT:
        text += " ISO 8601, or a time span before now, such as 30m, 2h or 7d."
    if not spec.many:
        return {**_OPTIONS[spec.kind], "help": text}
    return {**_OPTIONS[spec.kind], "action": "append", "help": f"{text} May be repeated.".strip()}
