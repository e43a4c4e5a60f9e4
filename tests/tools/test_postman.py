"""The Postman collection: it has every route, and newman runs it green against a live stack.

Needs node and npm on the PATH; newman is installed from its lock file.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.e2e import processes
from tests.support import SECRET
from wds import mock_downstream
from wds.config import Settings
from wds.ingest import create_app
from wds.storage.store import Store

ROOT = Path(__file__).parents[2]
COLLECTION = ROOT / "docs" / "postman" / "wds.postman_collection.json"
NEWMAN = Path(__file__).parent / "newman"
PAGES = ("/docs", "/docs/static", "/console")
"""For people with a browser; these and what is below them, but for the OpenAPI document."""


def requests(items: list[dict]) -> list[dict]:
    found = []
    for item in items:
        found += requests(item["item"]) if "item" in item else [item]
    return found


def in_the_collection(base: str) -> set[tuple[str, str]]:
    """Return (method, path) of every request to `base`; a variable in a path is `{}`."""
    found = set()
    for each in requests(json.loads(COLLECTION.read_text())["item"]):
        url = each["request"]["url"]
        if url["host"] == [base]:
            path = "/".join("{}" if "{{" in part else part for part in url["path"])
            found.add((each["request"]["method"], f"/{path}"))
    return found


async def served() -> dict[str, set[tuple[str, str]]]:
    store = Store("mongodb://127.0.0.1:1", "never_opened")
    apps = {
        "{{ingest_url}}": create_app(Settings(hmac_secrets=("s",)), store),
        "{{mock_url}}": mock_downstream.create_app(),
    }
    found = {base: routes(app) for base, app in apps.items()}
    await store.close()
    return found


def routes(app) -> set[tuple[str, str]]:
    found = set()
    for route in app.router.routes():
        path = route.resource.canonical
        page = path in {"/", *PAGES} or path.startswith(("/console/", "/docs/static/"))
        if route.method != "HEAD" and not page:
            parts = ("{}" if part.startswith("{") else part for part in path.split("/"))
            found.add((route.method, "/".join(parts)))
    return found


async def test_postman_collection_has_every_route_and_no_other():
    for base, existing in (await served()).items():
        assert in_the_collection(base) == existing, base


def test_postman_requests_all_have_tests():
    for each in requests(json.loads(COLLECTION.read_text())["item"]):
        [event] = each["event"]
        assert "pm.test(" in "\n".join(event["script"]["exec"]), each["name"]


@pytest.fixture(scope="module")
def newman() -> Path:
    command = ["npm", "ci", "--silent", "--no-audit", "--no-fund"]
    subprocess.run(command, cwd=NEWMAN, check=True, timeout=300)
    return NEWMAN / "node_modules" / ".bin" / "newman"


async def test_newman_runs_the_collection_green_against_a_live_stack(newman, engines, db, tmp_path):
    env = {**engines.environ(), "WDS_MONGO_DB": db.name, "WDS_OPERATOR_TOKEN": "operator"}
    shutil.copy(ROOT / "wds.example.toml", tmp_path / "wds.toml")
    async with AsyncExitStack() as stack:
        mock = await stack.enter_async_context(processes.mock(env, cwd=tmp_path))
        env["WDS_DOWNSTREAM_URL"] = f"{mock.url}/downstream/receive"
        ingest = await stack.enter_async_context(processes.ingest(env, cwd=tmp_path))
        await stack.enter_async_context(processes.dispatcher(env, cwd=tmp_path))
        variables = {
            "ingest_url": ingest.url,
            "mock_url": mock.url,
            "hmac_secret": SECRET,
            "operator_token": "operator",
        }
        command = [str(newman), "run", str(COLLECTION), "--color", "off"]
        for name, value in variables.items():
            command += ["--env-var", f"{name}={value}"]
        async with processes.running(env={}, cwd=tmp_path, command=tuple(command)) as run:
            assert await run.ended(180) == 0, run.text
            assert "assertions" in run.text


async def test_control_newman_fails_with_a_wrong_secret(newman, engines, db, tmp_path):
    env = {**engines.environ(), "WDS_MONGO_DB": db.name}
    async with processes.ingest(env, cwd=tmp_path) as ingest:
        wrong = (f"--env-var=ingest_url={ingest.url}", "--env-var=hmac_secret=wrong")
        command = (str(newman), "run", str(COLLECTION), "--folder", "Send", *wrong)
        async with processes.running(env={}, cwd=tmp_path, command=command) as run:
            assert await run.ended(60) == 1
