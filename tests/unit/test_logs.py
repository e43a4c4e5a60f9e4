"""Log lines: one JSON object each, and never a local variable of what crashed."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from wds import logs


@pytest.fixture(autouse=True)
def restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def crash(secret: str) -> None:
    msg = f"failed after {len(secret)} characters"
    raise RuntimeError(msg)


@pytest.mark.parametrize("log_format", logs.FORMATS)
def test_a_crash_is_logged_with_its_place_and_without_local_variables(log_format, capsys):
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


def test_json_is_one_object_a_line(capsys):
    logs.configure("json")
    structlog.get_logger().info("fact", number=1, text="two\nlines")
    logging.getLogger("elsewhere").warning("other %s", "fact")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["event"], first["number"], first["level"]) == ("fact", 1, "info")
    assert (second["event"], second["level"]) == ("other fact", "warning")
