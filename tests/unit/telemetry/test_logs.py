"""Log lines: one JSON object each, and never a local variable of what crashed."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import time
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path
from select import PIPE_BUF

import pytest
import structlog
from bson import Int64

from wds.telemetry import logs


@pytest.fixture(autouse=True)
def restored():
    root, server = logging.getLogger(), logging.getLogger("aiohttp.server")
    handlers, level, filters = root.handlers[:], root.level, server.filters[:]
    hooks = sys.excepthook, threading.excepthook
    ours = structlog.get_config()
    yield
    root.handlers, root.level, server.filters = handlers, level, filters
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(capture=False)
    structlog.configure(**ours)


class Text(str):
    __slots__ = ()


def crash(secret: str) -> None:
    msg = f"failed after {len(secret)} characters"
    raise RuntimeError(msg)


@pytest.mark.parametrize("log_format", logs.FORMATS)
def test_log_of_a_crash_has_its_place_and_no_local_variables(log_format, capsys):
    logs.configure(log_format)
    try:
        crash("hush")
    except RuntimeError:
        structlog.get_logger().exception("crashed", event_id="e1")
        logging.getLogger("elsewhere").exception("crashed too")
    said = capsys.readouterr().err
    assert "hush" not in said.replace('crash("hush")', "")
    assert said.count("failed after 4 characters") == 2
    assert "e1" in said


def test_json_format_writes_one_object_per_line(capsys):
    logs.configure("json")
    structlog.get_logger().info("fact", number=1, text="two\nlines")
    logging.getLogger("elsewhere").warning("other %s", "fact")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["event"], first["number"], first["level"]) == ("fact", 1, "info")
    assert (second["event"], second["level"]) == ("other fact", "warning")


def test_log_timestamp_of_every_line_has_microseconds(capsys, monkeypatch):
    logs.configure("json")
    instants = [0, 999_999, 1_000_000, 1_767_225_599_999_999, 1_767_225_600_000_001, 5]
    for instant in instants:
        monkeypatch.setattr(time, "time_ns", lambda at=instant: at * 1000 + 999)
        structlog.get_logger().info("fact")
    found = [json.loads(line)["timestamp"] for line in capsys.readouterr().err.splitlines()]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert [datetime.fromisoformat(each) for each in found] == [
        epoch + timedelta(microseconds=instant) for instant in instants
    ]
    assert found[-3:-1] == ["2025-12-31T23:59:59.999999Z", "2026-01-01T00:00:00.000001Z"]


@pytest.mark.parametrize("value", ["\udcff", 1 << 70, {"\ud800": [-(1 << 64)]}])
def test_json_format_logs_values_that_some_parsers_reject(value, capsys):
    logs.configure("json")
    structlog.get_logger().warning("unknown_setting", name=value)
    assert json.loads(capsys.readouterr().err)["name"] == value


def test_json_format_keeps_subclasses_of_numbers_and_shows_the_repr_of_others(capsys):
    logs.configure("json")
    structlog.get_logger().info(
        "fact", count=Int64(1 << 40), kind=Text("a"), what={1j}, where=Path("/")
    )
    said = json.loads(capsys.readouterr().err)
    assert (said["count"], said["kind"]) == (1 << 40, "a")
    assert (said["what"], said["where"]) == (["1j"], repr(Path("/")))


@pytest.mark.parametrize("log_format", logs.FORMATS)
def test_log_lines_have_the_contextvars_of_their_context(log_format, capsys):
    logs.configure(log_format)
    with structlog.contextvars.bound_contextvars(event_id="e1", attempt=2):
        structlog.get_logger().info("ours")
        logging.getLogger("aiohttp.client").warning("theirs")
    structlog.get_logger().info("after")
    ours, theirs, after = capsys.readouterr().err.splitlines()
    for line in (ours, theirs):
        assert "e1" in line
        assert "attempt" in line
    assert "e1" not in after


def test_log_of_libraries_has_nothing_below_info(capsys):
    logs.configure("json")
    logging.getLogger("aiohttp.client").debug("details")
    logging.getLogger("pymongo.command").info("a command, with its documents")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("log_format", logs.FORMATS)
def test_log_stream_that_cannot_be_written_raises_nothing(log_format, monkeypatch):
    class Broken:
        def write(self, _):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stderr", Broken())
    logs.configure(log_format)
    structlog.get_logger().info("fact")
    logging.getLogger("elsewhere").warning("other fact")


class Recorded:
    """Standard error, as a list of what was written to it in one go."""

    def __init__(self):
        self.writes = []

    def write(self, text):
        self.writes.append([json.loads(line)["event"] for line in text.splitlines()])

    def flush(self):
        """Keep nothing back."""

    def isatty(self):
        return False


@pytest.fixture
def writes(monkeypatch):
    recorded = Recorded()
    monkeypatch.setattr(sys, "stderr", recorded)
    logs.configure("json")
    return recorded.writes


def test_log_lines_of_one_pass_of_the_event_loop_are_written_together(writes):
    async def passes():
        structlog.get_logger().info("a")
        logging.getLogger("elsewhere").warning("b")
        assert writes == []
        await asyncio.sleep(0)
        assert writes == [["a", "b"]]
        structlog.get_logger().info("c")
        await asyncio.sleep(0)

    asyncio.run(passes())
    assert writes == [["a", "b"], ["c"]]


def test_log_writes_are_whole_lines_of_at_most_pipe_buf_bytes(monkeypatch):
    """Or the lines of processes that share one would break each other while it is full."""
    sizes = []

    class Measured(Recorded):
        def write(self, text):
            super().write(text)
            sizes.append(len(text.encode()))

    recorded = Measured()
    monkeypatch.setattr(sys, "stderr", recorded)
    logs.configure("json")
    said = [f"{number} {'ü' * (number % 300)}" for number in range(200)]
    said[100] = "long" * PIPE_BUF

    async def burst():
        for event in said:
            structlog.get_logger().info(event)

    asyncio.run(burst())
    assert [event for events in recorded.writes for event in events] == said
    assert [said[100]] in recorded.writes
    assert [size for size in sizes if size > PIPE_BUF] == [max(sizes)]
    assert len(sizes) < len(said) / 4


def test_log_lines_of_an_ending_loop_are_written_with_the_next_or_at_exit(writes):
    async def ends():
        asyncio.get_running_loop().call_soon(structlog.get_logger().info, "last")

    loop = asyncio.new_event_loop()
    loop.run_until_complete(ends())
    loop.close()
    assert writes == []
    logging.shutdown([weakref.ref(logging.getLogger().handlers[0])])
    assert writes == [["last"]]
    structlog.get_logger().info("after")
    asyncio.run(asyncio.sleep(0))
    assert writes == [["last"], ["after"]]


def test_log_lines_of_threads_are_not_lost_to_the_event_loop(writes):
    count = 2_000
    log = structlog.get_logger()

    def talk():
        for _ in range(count):
            log.info("thread")

    async def passes():
        talking = asyncio.create_task(asyncio.to_thread(talk))
        for _ in range(count):
            log.info("loop")
            await asyncio.sleep(0)
        await talking

    asyncio.run(passes())
    said = [event for written in writes for event in written]
    assert (said.count("thread"), said.count("loop")) == (count, count)


@pytest.mark.parametrize(
    ("level", "kept"), [("info", "abc"), ("warning", "bc"), ("error", "c")], ids=logs.LEVELS
)
def test_log_level_leaves_out_the_lines_below_it(level, kept, capsys):
    logs.configure("json", level)
    for log in (structlog.get_logger(), logging.getLogger("elsewhere")):
        log.info("a")
        log.warning("b")
        log.error("c")
    said = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert said == [*kept, *kept]
