"""Prometheus's own linter on the metrics of all three processes. Needs `promtool` on the PATH."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from tests.e2e import processes
from tests.support import eventually


async def lint(text: str) -> str:
    """Return what `promtool check metrics` has to say; nothing if all is well."""
    promtool = await asyncio.create_subprocess_exec(
        *("promtool", "check", "metrics"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await promtool.communicate(text.encode())
    return f"{said.decode()}exit status {promtool.returncode}"


async def test_promtool_finds_no_fault_in_the_metrics(engines, db, tmp_path):
    env = {**engines.environ(), "WDS_MONGO_DB": db.name}
    async with AsyncExitStack() as stack:
        mock = await stack.enter_async_context(processes.mock(env, cwd=tmp_path))
        env["WDS_DOWNSTREAM_URL"] = f"{mock.url}/downstream/receive"
        ingest = await stack.enter_async_context(processes.ingest(env, cwd=tmp_path))
        dispatcher = await stack.enter_async_context(processes.dispatcher(env, cwd=tmp_path))
        send = ("send", "--count", "3", "--url", f"{ingest.url}/webhooks/ingest")
        async with processes.running(*send, env=env, cwd=tmp_path) as sent:
            assert await sent.ended() == 0
        await eventually(
            lambda: processes.get_text(f"{ingest.url}/metrics"),
            lambda text: "wds_fleet_deliveries_succeeded_total" in text,
        )
        for url in (ingest.url, dispatcher.url, mock.url):
            assert await lint(await processes.get_text(f"{url}/metrics")) == "exit status 0"


async def test_control_promtool_finds_faults():
    assert "exit status 3" in await lint("# TYPE wrong counter\nwrong 1\n")
