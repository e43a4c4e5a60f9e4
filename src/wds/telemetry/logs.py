"""Logging: one line per fact on standard error, JSON for machines or aligned for people.

What the standard library's loggers say (aiohttp, pymongo, asyncio), warnings and whatever ends
a process or a thread become lines of the same form. A line that is about one event has its
`event_id`, and one about an attempt its number, from the context or as arguments: see `journal`.
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
    """Standard error, written to after each pass of the event loop, or at once outside one.

    A write for each line costs as much as making the line. One write is of whole lines, together
    no longer than a pipe takes in one piece: other processes may write to the same pipe. It never
    raises: no reader is no reason to stop.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: deque[str] = deque()
        self._writes_next: asyncio.AbstractEventLoop | None = None

    def write(self, text: str) -> int:
        self._waiting.append(text)
        if self._writes_next is None:
            with suppress(RuntimeError):  # there is none in this thread
                self._writes_next = asyncio.get_running_loop()
                self._writes_next.call_soon(self._write_out)
        return len(text)

    def flush(self) -> None:
        if self._writes_next is None or not self._writes_next.is_running():
            self._write_out()

    def _write_out(self) -> None:
        # First of all, so that a thread which still sees the loop has its line among these.
        self._writes_next = None
        lines: list[str] = []
        size = 0
        with suppress(IndexError):
            while True:
                line = self._waiting.popleft()
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
    """Puts the time on a line, UTC to the microsecond by RFC 3339; all but that once a second."""

    def __init__(self) -> None:
        self._last = (-1, "")  # replaced as one: threads log, too

    def __call__(self, _logger: object, _method: str, line: EventDict) -> EventDict:
        second, microsecond = divmod(time.time_ns() // 1000, 1_000_000)
        last, text = self._last
        if last != second:
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._last = (second, text)
        line["timestamp"] = f"{text}.{microsecond:06d}Z"
        return line


def configure(log_format: str, level: str = "info") -> None:
    """Set up logging for this process; what is below `level` (one of `LEVELS`) costs nothing."""
    least = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _Clock(),
    ]
    if log_format == "json":
        final: list[Processor] = [_tracebacks, _rendered]
    else:
        final = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    stream = cast("TextIO", _Lines(sys.stderr))  # no more of it is used
    # Our own lines are not sent through the standard library: that takes twice as long.
    structlog.configure(
        processors=[*shared, *final],
        logger_factory=structlog.WriteLoggerFactory(stream),
        wrapper_class=structlog.make_filtering_bound_logger(least),
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
    root.setLevel(least)
    logging.captureWarnings(capture=True)
    for name in ("pymongo", "asyncio"):
        logging.getLogger(name).setLevel(max(least, logging.WARNING))
    logging.getLogger("aiohttp.server").addFilter(_without_their_bytes)
    sys.excepthook = _crashed
    threading.excepthook = _thread_crashed


def _rendered(_logger: object, _method: str, line: EventDict) -> str:
    try:
        return msgspec.json.encode(line, enc_hook=_written).decode()
    except UnicodeEncodeError:  # it writes less: no lone surrogates
        return json.dumps(line, default=_written)


def _written(value: object) -> object:
    try:
        return json_default(value)
    except TypeError:
        return repr(value)


def _without_their_bytes(record: logging.LogRecord) -> bool:
    """Replace what aiohttp says of a request that is no HTTP, which quotes it.

    The quotation may be a header with a credential or a piece of a payload.
    """
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, HttpProcessingError):
        return True
    remote = record.args[0] if isinstance(record.args, tuple) and record.args else None
    log = structlog.get_logger("wds")
    log.info("malformed_request", cause=type(error).__name__, remote=remote)
    return False


def _crashed(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    structlog.get_logger("wds").critical("crashed", exc_info=(kind, error, traceback))


def _thread_crashed(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is None:
        return
    facts = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
    name = arguments.thread.name if arguments.thread is not None else None
    structlog.get_logger("wds").error("thread_crashed", thread=name, exc_info=facts)
