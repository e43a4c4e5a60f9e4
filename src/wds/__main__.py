"""Entry point of every process: `python -m wds COMMAND`, and the script `wds`.

`cli.parser` defines the commands and names the module of each; `cli.command_runner` imports and
runs that module. Nothing else is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from wds.cli.lean_imports import import_without
from wds.cli.parser import build_parser

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 success, 1 failure, 2 wrong settings or use."""
    arguments = build_parser().parse_args(argv)
    # After parsing, so that `--help` does not import it. rich would only colour tracebacks.
    import_without("structlog", "rich")
    from wds.cli import command_runner  # noqa: PLC0415

    return command_runner.run(arguments)


def run() -> None:
    """Run one command as this process, and end the process.

    `os._exit` instead of a return: the interpreter would wait for the MongoDB driver's threads,
    and a server that does not answer can block these for long.
    """
    gc.disable()  # until `command_runner` enables it: it takes a third of the import time
    status = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the reader of a pipe has gone
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
