"""Every command's name, help and arguments, and the module that runs it.

This module is imported even for `--help`, so it imports no module of a command. A new command is an
entry here and a module with the function `run(arguments, environ) -> int`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from wds import __version__
from wds.cli import operator_arguments
from wds.cli.operator_arguments import positive

if TYPE_CHECKING:
    from collections.abc import Callable

    Command = Callable[[str, str, str], argparse.ArgumentParser]

LOG_FORMATS = ("json", "console")
LOG_LEVELS = ("info", "warning", "error")
DEFAULT_SOURCE = "default"
UP_DATA_DIR = Path(".wds/up")
DEMO_DATA_DIR = Path(".wds/demo")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line.

    The parsed arguments have the name of the command's module as `module`.
    """
    logging = _logging_options()
    parser = argparse.ArgumentParser(
        prog="wds",
        description="Webhook delivery on MongoDB. Settings: WDS_* variables, exported or in .env.",
        parents=[logging],
    )
    parser.add_argument("--version", action="version", version=f"wds {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, module: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, parents=[logging])
        added.set_defaults(module=module)
        return added

    command("ingest", "wds.cli.serve_ingest", "receive, verify and store events (WDS_PORT)")
    command("dispatcher", "wds.cli.serve_dispatcher", "deliver due events; run any number of them")
    command(
        "mock-downstream",
        "wds.cli.serve_mock_downstream",
        "a rate-limited, unreliable receiver to deliver to",
    )
    _add_local(command)
    _add_send(command)
    _add_check(command)
    operator_arguments.add_commands(command)
    return parser


def _logging_options() -> argparse.ArgumentParser:
    """Return options that every command accepts, before its name or after it.

    They have no default: the command's would replace the value that came before its name.
    """
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        default=argparse.SUPPRESS,
        help="default: console on a terminal, else json",
    )
    options.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default=argparse.SUPPRESS,
        help="the lowest level that is logged (default: info)",
    )
    return options


def _add_local(command: Command) -> None:
    up = command("up", "wds.local.up", "everything on this machine, until Ctrl-C")
    demo = command("demo", "wds.local.demo", "everything, 20 events, and the result of each")
    for parser, data_dir in ((up, UP_DATA_DIR), (demo, DEMO_DATA_DIR)):
        parser.add_argument("--dispatchers", type=positive, default=2, metavar="N")
        parser.add_argument(
            "--data-dir",
            type=Path,
            default=data_dir,
            help=f"where the embedded engines keep data (default: {data_dir})",
        )


def _add_send(command: Command) -> None:
    send = command("send", "wds.cli.send", "sign and post a file, standard input or samples")
    send.add_argument("file", nargs="?", default="-", help="JSON to post; - is standard input")
    send.add_argument("--count", type=positive, metavar="N", help="post N samples instead")
    send.add_argument("--seed", type=int, help="makes the samples repeatable")
    send.add_argument(
        "--source",
        default=DEFAULT_SOURCE,
        metavar="NAME",
        help="sign as the provider of this source of wds.toml does (default: %(default)s)",
    )
    send.add_argument("--url", help="default: the source's route on WDS_HOST and WDS_PORT")
    send.add_argument("--event-type", help="for providers that send the type in a header")
    send.add_argument(
        "--idempotency-key",
        help="for providers that send the key in a header; default: a random one",
    )


def _add_check(command: Command) -> None:
    check = command("check", "wds.cli.check", "check the database against the guarantees")
    check.add_argument(
        "--overdue",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="seconds that an event may be due before it counts as stuck (default: 60)",
    )
    check.add_argument("--payloads", action="store_true", help="compare every payload's hash too")
