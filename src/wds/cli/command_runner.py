"""Running one command: its environment, its logs, its module, its exit status.

The only reader of the process's environment and of `.env`. A command is a module with the function
`run(arguments, environ) -> int`, which returns the exit status.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import structlog
from dotenv import dotenv_values

from wds.config import unknown_names
from wds.domain.errors import SettingsError, WdsError
from wds.telemetry import logs

if TYPE_CHECKING:
    from argparse import Namespace

log = structlog.get_logger("wds")

FAILED = 1
MISUSED = 2
_UNKNOWN = "it has no effect, unless a source's secrets_from names it"


def run(arguments: Namespace) -> int:
    """Run the command that was parsed and return its exit status.

    Errors are printed to standard error, one line each, without a traceback.
    """
    terminal = sys.stderr.isatty()
    arguments.log_format = getattr(arguments, "log_format", "console" if terminal else "json")
    arguments.log_level = getattr(arguments, "log_level", "info")
    logs.configure(arguments.log_format, arguments.log_level)
    environ = _environment()
    for name in unknown_names(environ):
        log.warning("unknown_setting", name=name, consequence=_UNKNOWN)
    try:
        command = import_module(arguments.module)
        # Modules live as long as the process: no later collection needs to visit them.
        gc.freeze()
        gc.enable()
        status: int = command.run(arguments, environ)
    except SettingsError as error:
        for problem in error.problems:
            print(f"wds: {problem}", file=sys.stderr)
        return MISUSED
    except WdsError as error:
        print(f"wds: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status


def _environment() -> dict[str, str]:
    """Return the variables of `.env`, overridden by those of the environment."""
    from_file = {name: value for name, value in dotenv_values(".env").items() if value is not None}
    return {**from_file, **os.environ}
