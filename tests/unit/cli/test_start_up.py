"""What a command imports before it does anything: the time that each start of a process takes."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from tests.e2e.processes import CLEAN_ENVIRON
from wds.cli import parser
from wds.cli.parser import build_parser
from wds.ingestion import sources
from wds.telemetry import logs

DRIVERS = {"bson", "motor", "pymongo", "redis"}
SERVER = {"aiohttp.web", "aiohttp_apispec", "jinja2", "marshmallow", "prometheus_client"}


RUN = """
import sys
before = {*sys.modules}
from wds.__main__ import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print()
print(status, *{*sys.modules} - before)
"""
HEALTH = (
    "import sys; before = {*sys.modules}; import wds.health; print(0, *{*sys.modules} - before)"
)


def imported(directory, *arguments, status=2, script=RUN):
    """Run a command that ends before it does anything, and return the modules it imported."""
    ended = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=directory,
        env=CLEAN_ENVIRON,
    )
    returned, *modules = ended.stdout.splitlines()[-1].split()
    assert returned == str(status), ended.stderr
    return set(modules)


@pytest.mark.parametrize("arguments", [("--help",), ("send", "--help"), ("--version",)])
def test_help_imports_no_library_but_msgspec(tmp_path, arguments):
    modules = imported(tmp_path, *arguments, status=0)
    packages = {name.partition(".")[0] for name in modules}
    installed = {*packages} - {*sys.stdlib_module_names}
    assert {"wds", "msgspec"} <= installed <= {"wds", "msgspec", "typing_extensions"}
    assert not packages & {"asyncio", "logging", "ssl"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", "--payload"),
        ("replay",),
        ("cancel", "some-id", "--status", "RECEIVED"),
        ("send",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_http_commands_import_neither_the_server_nor_a_driver(tmp_path, arguments):
    modules = imported(tmp_path, *arguments)
    assert {"aiohttp", "rich.console"} <= modules
    assert not modules & (SERVER | DRIVERS)


def test_ingest_imports_nothing_for_terminals_or_documents(tmp_path):
    modules = imported(tmp_path, "ingest")
    assert {"aiohttp.web", "pymongo"} <= modules
    assert not modules & {"aiohttp_apispec", "apispec", "opentelemetry", "redis", "rich"}


def test_dispatcher_imports_redis_without_opentelemetry_and_no_console(tmp_path):
    modules = imported(tmp_path, "dispatcher")
    assert {"aiohttp.web", "pymongo", "redis"} <= modules
    assert not modules & {"aiohttp_apispec", "jinja2", "opentelemetry.sdk", "rich", "wds.console"}


def test_health_imports_no_library_but_the_standard_one(tmp_path):
    modules = imported(tmp_path, script=HEALTH, status=0)
    installed = {name.partition(".")[0] for name in modules} - {*sys.stdlib_module_names}
    assert installed == {"wds"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["ingest"],
        ["dispatcher"],
        ["mock-downstream"],
        ["up"],
        ["demo"],
        ["send"],
        ["check"],
        ["search"],
        ["replay", "some-id"],
        ["cancel", "some-id"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_parser_names_a_module_that_runs_the_command(arguments):
    assert callable(import_module(build_parser().parse_args(arguments).module).run)


def test_parser_repeats_what_it_would_be_slow_to_import():
    assert parser.LOG_FORMATS == logs.FORMATS
    assert parser.LOG_LEVELS == logs.LEVELS
    assert parser.DEFAULT_SOURCE == sources.DEFAULT_SOURCE
