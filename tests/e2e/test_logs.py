"""The logs of real processes: one JSON line a fact, and the whole story of an event by its id."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.e2e import processes
from tests.e2e.test_commands import up_env, up_is_ready
from tests.support import eventually, receiving, signed
from wds.local import embedded_engines
from wds.local.replica_set import initiate_replica_set


@pytest.fixture
def env(engines, db):
    return {
        **engines.environ(),
        "WDS_MONGO_DB": db.name,
        "WDS_RATE_LIMIT": "0",
        "WDS_BACKOFF": "0.1",
        "WDS_REQUEST_TIMEOUT": "1",
        "WDS_LEASE": "2",
    }


async def send(url: str, body: bytes, path: str = "", **headers: str) -> tuple[int, dict]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{url}/webhooks/ingest{path}", data=body, headers={**signed(body), **headers}
        ) as response,
    ):
        return response.status, await response.json()


def lines(*made: processes.Process) -> list[dict]:
    """Return every line of every process, each of which must be a JSON object with its basics."""
    found = [json.loads(line) for process in made for line in process.lines]
    for line in found:
        assert {"event", "level", "timestamp"} <= set(line), line
        assert line["timestamp"].endswith("Z")
    return found


def story(event_id: str, *made: processes.Process) -> list[tuple[str, int | None]]:
    """Return (fact, attempt) of every line about one event, by the lines' own clock."""
    mine = [line for line in lines(*made) if line.get("event_id") == event_id]
    ordered = sorted(mine, key=lambda line: line["timestamp"])
    return [(line["event"], line.get("attempt")) for line in ordered]


async def final(db, count: int) -> None:
    done = {"status": {"$in": ["DELIVERED", "FAILED_PERMANENTLY"]}}
    await eventually(lambda: db.events.count_documents(done), lambda seen: seen == count)


async def test_logs_of_all_processes_show_what_happened_to_an_event(env, db, tmp_path):
    async def fail_first(request):
        seen = receiver.ids.count(request.headers["webhook-id"])
        return aiohttp.web.Response(status=500 if seen == 1 else 200)

    async with receiving() as receiver, AsyncExitStack() as stack:
        receiver.answer = fail_first
        env["WDS_DOWNSTREAM_URL"] = receiver.url
        ingest = await stack.enter_async_context(processes.ingest(env, cwd=tmp_path))
        dispatchers = [
            await stack.enter_async_context(processes.dispatcher(env, cwd=tmp_path))
            for _ in range(2)
        ]
        key = {"Idempotency-Key": "k"}
        _, one = await send(ingest.url, b'{"type": "t"}', **key)
        assert (await send(ingest.url, b'{"type": "t"}', **key))[0] == 200
        assert (await send(ingest.url, b'{"type": "u"}', **key))[0] == 409
        _, batch = await send(ingest.url, b'[{"n": 1}, {"n": 2}]', "/batch")
        ids = [each["id"] for each in batch["events"]]
        await final(db, 3)
        for each in (ingest, *dispatchers):
            assert await each.stop() == 0
    tried = [("attempt", 1), ("attempt", 2)]
    mine = story(one["id"], ingest, *dispatchers)
    assert [each for each in mine if each[1]] == tried
    at_ingest = [("received", None), ("received", None), ("refused", None)]
    assert [each for each in mine if not each[1]] == at_ingest
    for event_id in ids:
        assert story(event_id, ingest, *dispatchers) == [("received", None), *tried]
    attempts = [line for line in lines(*dispatchers) if line["event"] == "attempt"]
    assert {(line["attempt"], line["status_code"], line["status"]) for line in attempts} == {
        (1, 500, "DELIVERING"),
        (2, 200, "DELIVERED"),
    }
    assert [line["duplicate"] for line in lines(ingest) if line["event"] == "received"] == [
        False,
        True,
        False,
        False,
    ]


RECOVERED = [("lease_recovered", 1), ("attempt", 2)]


@pytest.mark.parametrize(
    ("changes", "after"),
    [
        ({"WDS_MAX_ATTEMPTS": "5", "WDS_CONCURRENCY": "1"}, RECOVERED),
        ({"WDS_MAX_ATTEMPTS": "5"}, RECOVERED),
        ({"WDS_MAX_ATTEMPTS": "1", "WDS_CONCURRENCY": "1"}, [("buried", None)]),
        ({"WDS_MAX_ATTEMPTS": "1"}, [("buried", None)]),
    ],
    ids=["tried again", "tried again, in bulk", "no try left", "no try left, in bulk"],
)
async def test_logs_show_what_happened_to_an_event_whose_dispatcher_died(
    env, db, tmp_path, changes, after
):
    release = asyncio.Event()

    async def hang(_):
        await release.wait()
        return aiohttp.web.Response()

    env |= changes
    async with receiving() as receiver, AsyncExitStack() as stack:
        receiver.answer = hang
        env["WDS_DOWNSTREAM_URL"] = receiver.url
        ingest = await stack.enter_async_context(processes.ingest(env, cwd=tmp_path))
        doomed = await stack.enter_async_context(processes.dispatcher(env, cwd=tmp_path))
        _, event = await send(ingest.url, b"{}")
        await eventually(lambda: len(receiver.requests))
        await doomed.stop(signal.SIGKILL)
        release.set()
        heir = await stack.enter_async_context(processes.dispatcher(env, cwd=tmp_path))
        await final(db, 1)
        assert await heir.stop() == 0
        assert await ingest.stop() == 0
    assert story(event["id"], ingest, doomed, heir) == [("received", None), *after]


async def test_logs_name_an_event_that_may_be_stored(env, tmp_path):
    server = await embedded_engines.start_mongod(tmp_path / "mongo")
    try:
        await initiate_replica_set("127.0.0.1", server.port, embedded_engines.REPLICA_SET)
        url = f"mongodb://127.0.0.1:{server.port}/?replicaSet=wds"
        async with processes.ingest({**env, "WDS_MONGO_URL": url}, cwd=tmp_path) as ingest:
            server.process.send_signal(signal.SIGSTOP)
            status, _ = await send(ingest.url, b"{}")
            assert status == 503
            server.process.send_signal(signal.SIGCONT)
            assert await ingest.stop() == 0
        [line] = [line for line in lines(ingest) if line["event"] == "not_acknowledged"]
        assert (line["stored"], line["level"]) == ("unknown", "warning")
        assert re.fullmatch("[0-9a-f]{32}", line["event_id"])
    finally:
        server.process.send_signal(signal.SIGCONT)
        await server.stop()


NO_HTTP = [
    b"GARBAGE \x00 hush\r\n\r\n",
    b"GET / HTTP/1.1\r\nAuth\x00orization: Bearer hush\r\n\r\n",
    b"GET / HTTP/1.1\r\nAuthorization: Bearer hush" + b"h" * 10_000 + b"\r\n\r\n",
    b"POST /webhooks/ingest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz hush\r\n",
    b"POST /downstream/receive HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 9hush\r\n\r\nx",
]


@pytest.mark.parametrize("command", ["ingest", "mock"])
async def test_logs_of_a_malformed_request_quote_nothing_of_it(env, tmp_path, command):
    async with getattr(processes, command)(env, cwd=tmp_path) as made:
        for text in NO_HTTP:
            port = int(made.url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(text)
            assert (await reader.readline()).split()[1] in {b"400", b"431"}
            writer.close()
            await writer.wait_closed()
        assert await made.stop() == 0
    assert "hush" not in made.text
    said = [line for line in lines(made) if line["event"] in {"malformed_request", "refused"}]
    assert len(said) == len(NO_HTTP)
    assert {(line["level"], line["remote"]) for line in said} == {("info", "127.0.0.1")}
    assert "Traceback" not in made.text


CRASHES = """
import asyncio, logging, threading, warnings
from wds.telemetry import logs
logs.configure("json")

def fail(text):
    raise RuntimeError(text)

warnings.warn("old habits", DeprecationWarning)
logging.getLogger("aiohttp.client").error("a library's\\nwords")
thread = threading.Thread(target=fail, args=("in a thread",), name="worker")
thread.start()
thread.join()

async def lost():
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    asyncio.get_running_loop().create_task(broken())
    await asyncio.sleep(0.01)

async def broken():
    fail("in a task")

asyncio.run(lost())
fail("at the end")
"""


async def test_logs_have_warnings_libraries_threads_tasks_and_crashes_as_lines(
    tmp_path,
):
    command = (sys.executable, "-W", "always", "-c", CRASHES)
    async with processes.running(command=command, env={}, cwd=tmp_path) as made:
        assert await made.ended() == 1
    said = lines(made)
    assert [line["level"] for line in said] == ["warning", "error", "error", "error", "critical"]
    assert "old habits" in said[0]["event"]
    assert said[1]["event"] == "a library's\nwords"
    assert said[1]["logger"] == "aiohttp.client"
    assert (said[2]["event"], said[2]["thread"]) == ("thread_crashed", "worker")
    assert said[3]["logger"] == "asyncio"
    assert said[4]["event"] == "crashed"
    for line, text in zip(said[2:], ("in a thread", "in a task", "at the end"), strict=True):
        assert line["exception"][0]["exc_value"] == text


@pytest.mark.parametrize(
    "arguments",
    [("--log-format", "console", "mock-downstream"), ("mock-downstream", "--log-format=console")],
    ids=["before the command", "after it"],
)
async def test_logs_in_console_format_are_aligned_and_plain(tmp_path, arguments):
    port = embedded_engines.free_port()
    env = {"WDS_MOCK_PORT": str(port), "WDS_NO_SUCH": "1"}
    url = f"http://127.0.0.1:{port}"
    async with processes.running(*arguments, env=env, cwd=tmp_path, url=url) as made:
        await processes.ready(made, "/healthz")
        assert await made.stop() == 0
    first, second = made.lines
    assert re.fullmatch(r"\S+ \[warning *\] unknown_setting +.* name=WDS_NO_SUCH", first)
    assert re.fullmatch(rf"\S+ \[info *\] listening +host=127\.0\.0\.1 port={port}", second)
    assert "\x1b" not in made.text


async def test_logs_of_the_parts_of_up_have_the_format_of_up(tmp_path):
    for log_format, looks in (("console", r"\[info *\] listening"), ("json", r'"listening"')):
        env = up_env()
        more = ("--log-format", log_format, "--data-dir", log_format, "--dispatchers", "1")
        async with processes.running("up", *more, env=env, cwd=tmp_path) as stack:
            await up_is_ready(stack)
            assert await stack.stop() == 0
        for part in ("ingest", "mock", "dispatcher-1"):
            assert re.search(rf"^\[{part}\] .*{looks}", stack.text, re.MULTILINE)


async def test_logs_that_nobody_reads_do_not_stop_the_process(env, db, tmp_path):
    """As behind `| head`: every write to standard error fails."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    port = embedded_engines.free_port()
    url = f"http://127.0.0.1:{port}"
    made = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wds", "ingest"),
        env={**processes.CLEAN_ENVIRON, **env, "WDS_PORT": str(port)},
        cwd=tmp_path,
        stderr=write_end,
    )
    os.close(write_end)
    try:
        await processes.ready(processes.Process("ingest", made, url), "/readyz")
        for _ in range(3):
            assert (await send(url, b"{}"))[0] == 202
        made.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(made.wait(), 15) == 0
    finally:
        await embedded_engines.end(made, signal.SIGKILL, 5)
    assert await db.events.count_documents({}) == 3
