"""The private names of aiohttp: all are listed, and a missing one is reported at import."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web, web_protocol

from wds.domain.errors import StartError
from wds.web import aiohttp_private

ROOT = Path(__file__).parents[3]
SOURCE = Path(aiohttp_private.__file__).read_text()


def test_check_accepts_the_installed_aiohttp():
    aiohttp_private.check()


@pytest.mark.parametrize(
    ("owner", "name"),
    aiohttp_private.PRIVATE_NAMES + aiohttp_private.UNDOCUMENTED_NAMES,
    ids=lambda each: getattr(each, "__name__", each),
)
def test_check_reports_a_missing_name_and_the_release_to_install(monkeypatch, owner, name):
    monkeypatch.delattr(owner, name)
    with pytest.raises(StartError) as caught:
        aiohttp_private.check()
    message = str(caught.value)
    assert f"aiohttp {aiohttp.__version__} lacks {owner.__name__}.{name}, which" in message
    assert message.endswith(f"install aiohttp{aiohttp_private.SUPPORTED}")


def test_check_reports_a_missing_attribute_of_the_server(monkeypatch):
    monkeypatch.setattr(web.Server, "__init__", lambda _: None)
    with pytest.raises(StartError, match=r"lacks Server\._loop, Server\._kwargs, which"):
        aiohttp_private.check()


def test_check_runs_at_import(monkeypatch):
    monkeypatch.delattr(web_protocol, "_ErrInfo")
    with pytest.raises(StartError, match="_ErrInfo"):
        runpy.run_path(aiohttp_private.__file__)


def test_private_names_lists_every_name_that_the_module_uses():
    used = {
        each.attr
        for each in ast.walk(ast.parse(SOURCE))
        if isinstance(each, ast.Attribute) and re.match("_[a-zA-Z]", each.attr)
    }
    used |= {"_make_server"}  # overridden
    listed = {name for _, name in aiohttp_private.PRIVATE_NAMES}
    listed |= set(aiohttp_private._SERVER_ATTRIBUTES)
    own = {"_connection_class"}
    assert used - own == listed


def test_private_names_are_not_used_by_other_modules_of_web():
    """Linters see them on foreign objects, but not on `self` in a subclass."""
    names = "|".join(name for _, name in aiohttp_private.PRIVATE_NAMES)
    for path in Path(aiohttp_private.__file__).parent.glob("*.py"):
        if path.name != "aiohttp_private.py":
            assert not re.search(rf"\b({names})\b", path.read_text()), path


def test_supported_range_is_the_one_of_the_project():
    dependency = re.search(r'"aiohttp(>=[^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert dependency is not None
    assert dependency[1] == aiohttp_private.SUPPORTED


def test_command_reports_a_missing_name_in_one_line():
    code = (
        "import sys; from aiohttp import web; del web.AppRunner._make_server;"
        " from wds.__main__ import main; sys.exit(main(['dispatcher']))"
    )
    ended = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert re.fullmatch(r"wds: aiohttp \S+ lacks AppRunner._make_server, .*\n", ended.stderr)
