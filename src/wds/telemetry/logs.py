"""Logging: one line per fact on standard error, as JSON or aligned for people.

Messages of the standard library's loggers (aiohttp, pymongo, asyncio), warnings, and exceptions
that end a process or a thread become lines of the same form. `event_log` has the lines about
events and attempts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import TYPE_CHECKING, TextIO, cast

import msgspec
import structlog
from aiohttp.http_exceptions import HttpProcessingError

from wds.encoding import json_default

if TYPE_CHECKING:
    from types import TracebackType

    from structlog.typing import EventDict, Processor

FORMATS = ("json", "console")
LEVELS = ("info", "warning", "error")

# Never with local variables: they hold secrets and payloads.
_tracebacks = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


class _Lines:
    """Standard error, written once per pass of the event loop, or at once outside a loop.

    Writing each line by itself would cost as much as formatting it. Each write consists of whole
    lines and is at most `PIPE_BUF` bytes long, so a pipe takes it in one piece: other processes
    may write to the same pipe. Errors are ignored: a process goes on if nobody reads its log.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._pending: deque[str] = deque()
        self._writes_next: asyncio.AbstractEventLoop | None = None

    def write(self, text: str) -> int:
        self._pending.append(text)
        if self._writes_next is None:
            with suppress(RuntimeError):  # this thread has no event loop
                self._writes_next = asyncio.get_running_loop()
                self._writes_next.call_soon(self._write_out)
        return len(text)

    def flush(self) -> None:
        if self._writes_next is None or not self._writes_next.is_running():
            self._write_out()

    def _write_out(self) -> None:
        # Reset first: a thread that still sees the loop then has its line written below.
        self._writes_next = None
        lines: list[str] = []
        size = 0
        with suppress(IndexError):
            while True:
                line = self._pending.popleft()
                length = len(line.encode(errors="replace"))
                if lines and size + length > PIPE_BUF:
                    self._write_at_once(lines)
                    lines, size = [], 0
                lines.append(line)
                size += length
        self._write_at_once(lines)

    def _write_at_once(self, lines: list[str]) -> None:
        with suppress(OSError, ValueError):
            self._stream.write("".join(lines))
            self._stream.flush()


class _Clock:
    """Adds the time to a line: UTC, RFC 3339, microseconds. Formats the seconds only once each."""

    def __init__(self) -> None:
        self._last = (-1, "")  # one tuple, because threads log too

    def __call__(self, _logger: object, _method: str, line: EventDict) -> EventDict:
        second, microsecond = divmod(time.time_ns() // 1000, 1_000_000)
        last, text = self._last
        if last != second:
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._last = (second, text)
        line["timestamp"] = f"{text}.{microsecond:06d}Z"
        return line


def configure(log_format: str, level: str = "info") -> None:
    """Set up logging for this process. Lines below `level` (one of `LEVELS`) cost nothing."""
    minimum = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _Clock(),
    ]
    if log_format == "json":
        final: list[Processor] = [_tracebacks, _render_json]
    else:
        final = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    stream = cast("TextIO", _Lines(sys.stderr))  # nothing else of it is used
    # Our own lines bypass the standard library, which would take twice as long.
    structlog.configure(
        processors=[*shared, *final],
        logger_factory=structlog.WriteLoggerFactory(stream),
        wrapper_class=structlog.make_filtering_bound_logger(minimum),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(minimum)
    logging.captureWarnings(capture=True)
    for name in ("pymongo", "asyncio"):
        logging.getLogger(name).setLevel(max(minimum, logging.WARNING))
    logging.getLogger("aiohttp.server").addFilter(_drop_quoted_bytes)
    sys.excepthook = _log_crash
    threading.excepthook = _log_thread_crash


def _render_json(_logger: object, _method: str, line: EventDict) -> str:
    try:
        return msgspec.json.encode(line, enc_hook=_encode_other).decode()
    except UnicodeEncodeError:  # msgspec cannot write lone surrogates
        return json.dumps(line, default=_encode_other)


def _encode_other(value: object) -> object:
    try:
        return json_default(value)
    except TypeError:
        return repr(value)


def _drop_quoted_bytes(record: logging.LogRecord) -> bool:
    """Replace aiohttp's message about a malformed request, because it quotes the request.

    The quotation may contain a credential or a part of a payload.
    """
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, HttpProcessingError):
        return True
    remote = record.args[0] if isinstance(record.args, tuple) and record.args else None
    log = structlog.get_logger("wds")
    log.info("malformed_request", cause=type(error).__name__, remote=remote)
    return False


def _log_crash(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    structlog.get_logger("wds").critical("crashed", exc_info=(kind, error, traceback))


def _log_thread_crash(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is None:
        return
    facts = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
    name = arguments.thread.name if arguments.thread is not None else None
    structlog.get_logger("wds").error("thread_crashed", thread=name, exc_info=facts)
