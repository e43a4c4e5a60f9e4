"""The commands as real processes: their output, their exit status, the processes they leave."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket

import pytest

from tests.e2e import processes
from tests.support import SECRET, eventually, new_event
from wds.local import embedded_engines


def up_env(**more: str) -> dict[str, str]:
    """Settings of a stack on free ports with engines of its own."""
    ports = {f"WDS_{name}PORT": str(embedded_engines.free_port()) for name in ("", "MOCK_")}
    return {"WDS_HMAC_SECRET": SECRET, "WDS_METRICS_PORT": "0", **ports, **more}


async def up_is_ready(stack: processes.Process) -> set[int]:
    """Wait for the stack; return every process of it."""

    async def is_ready() -> bool:
        assert stack.process.returncode is None, stack.text
        return any(line.startswith("[up] ready") for line in stack.lines)

    await eventually(is_ready, within_s=60)
    return descendants_of(stack)


def descendants_of(stack: processes.Process) -> set[int]:
    return processes.descendants(stack.process.pid)


async def none_left(pids: set[int]) -> None:
    await eventually(lambda: processes.alive(pids), lambda left: not left)


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_up_starts_everything_and_leaves_no_process_behind(tmp_path, sig):
    async with processes.running(
        "up", "--dispatchers", "2", "--data-dir", "data", env=up_env(), cwd=tmp_path
    ) as stack:
        pids = await up_is_ready(stack)
        assert len(pids) >= 6  # mongod, redis-server, mock, ingest, two dispatchers
        names = {line.split("]")[0][1:] for line in stack.lines if line.startswith("[")}
        assert {"ingest", "mock", "dispatcher-1", "dispatcher-2"} <= names
        status = await stack.stop(sig)
        assert status == (-sig if sig == signal.SIGKILL else 0)
        await none_left(pids)


async def test_up_keeps_its_data_from_run_to_run(tmp_path):
    ids = []
    for _ in range(2):
        env = up_env()
        async with processes.running("up", "--dispatchers", "1", env=env, cwd=tmp_path) as stack:
            await up_is_ready(stack)
            async with processes.running(
                "send", "--count", "3", "--seed", "4", env=env, cwd=tmp_path
            ) as send:
                assert await send.ended() == 0
                ids.append(send.lines[-1])
            assert await stack.stop() == 0
    assert ids == ["3 stored, 0 repeated, 0 refused", "0 stored, 3 repeated, 0 refused"]


async def test_up_reports_a_busy_port_in_one_line_and_stops_everything(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        env = up_env(WDS_PORT=str(port))
        async with processes.running("up", env=env, cwd=tmp_path) as stack:
            children: set[int] = set()
            while stack.process.returncode is None:
                children |= descendants_of(stack)
                await asyncio.sleep(0.02)
            assert await stack.ended() == 1
            assert len(children) >= 3
            await none_left(children)
    assert f"[ingest] wds: port {port} on 127.0.0.1 is in use" in stack.text
    assert stack.lines[-1].startswith("wds: ingest ended at start")
    assert "Traceback" not in stack.text


@pytest.mark.alone
async def test_demo_delivers_every_event_and_leaves_no_process_behind(engines, db, store, tmp_path):
    """The settings here name another database, with a due event, which it must not touch."""
    await store.writer.insert([new_event()])
    configured = {
        **engines.environ(),
        "WDS_MONGO_DB": db.name,
        "WDS_DOWNSTREAM_URL": "http://127.0.0.1:9/",
        "WDS_RATE_LIMIT": "1",
    }
    dot_env = "".join(f"{name}={value}\n" for name, value in configured.items())
    (tmp_path / ".env").write_text(dot_env)
    async with processes.running("demo", env=configured, cwd=tmp_path) as demo:
        pids: set[int] = set()
        while demo.process.returncode is None:
            pids |= descendants_of(demo)
            await asyncio.sleep(0.1)
        assert await demo.ended(120) == 0, demo.text
        await none_left(pids)
    rows = [line for line in demo.lines if line.startswith("│ ")]
    assert len(rows) >= 20
    assert sum("DELIVERED" in row for row in rows) == 20
    [configured_event] = await db.events.find().to_list(None)
    assert (configured_event["status"], configured_event["attempt_count"]) == ("RECEIVED", 0)
    assert "limited 0" in demo.text
    assert "(401, nothing stored)" in demo.text.replace("\n", " ")


@pytest.mark.parametrize(
    ("command", "env", "problems"),
    [
        ("ingest", {}, ["WDS_HMAC_SECRET is not set", "WDS_MONGO_URL is not set"]),
        ("dispatcher", {"WDS_MONGO_URL": "mongodb://x"}, ["WDS_REDIS_URL is not set"]),
        (
            "dispatcher",
            {"WDS_MONGO_URL": "http://x", "WDS_RATE_LIMIT": "-1", "WDS_BACKOFF": "soon"},
            ["WDS_MONGO_URL:", "WDS_RATE_LIMIT:", "WDS_BACKOFF:"],
        ),
        ("mock-downstream", {"WDS_LEASE": "5"}, ["WDS_LEASE (5 s) must be longer than"]),
    ],
)
async def test_services_report_every_wrong_setting_and_do_not_start(
    tmp_path, command, env, problems
):
    async with processes.running(command, env=env, cwd=tmp_path) as service:
        assert await service.ended() == 2
    assert len(service.lines) == len(problems)
    for line, problem in zip(service.lines, problems, strict=True):
        assert line.startswith(f"wds: {problem}")


async def test_dispatcher_refuses_a_url_that_cannot_be_requested_and_does_not_repeat_it(
    engines, tmp_path
):
    env = {**engines.environ(), "WDS_DOWNSTREAM_URL": "http://[::1]x/hush"}
    async with processes.running("dispatcher", env=env, cwd=tmp_path) as dispatcher:
        assert await dispatcher.ended() == 1
        assert dispatcher.lines == ["wds: WDS_DOWNSTREAM_URL is not a URL that can be requested"]


async def test_settings_are_read_from_dot_env_unless_the_environment_has_them(tmp_path):
    (tmp_path / ".env").write_text("WDS_RATE_LIMIT=x\nWDS_LEASE=y\n")
    async with processes.running(
        "mock-downstream", env={"WDS_LEASE": "30"}, cwd=tmp_path
    ) as command:
        assert await command.ended() == 2
    [line] = command.lines
    assert line.startswith("wds: WDS_RATE_LIMIT")


async def test_services_log_a_misspelt_setting(tmp_path):
    async with processes.mock({"WDS_RATE_LIMT": "0"}, cwd=tmp_path) as mock:
        assert await mock.stop() == 0
    first = json.loads(mock.lines[0])
    assert (first["event"], first["name"]) == ("unknown_setting", "WDS_RATE_LIMT")


async def test_send_posts_a_file_or_samples(engines, db, tmp_path):
    env = {**engines.environ(), "WDS_MONGO_DB": db.name}
    body = b'{"type": "from.a.file",  "n": 1}'
    (tmp_path / "event.json").write_bytes(body)
    async with processes.ingest(env, cwd=tmp_path) as ingest:
        url = f"{ingest.url}/webhooks/ingest"
        arguments = ("send", "event.json", "--url", url, "--event-type", "x")
        async with processes.running(*arguments, env=env, cwd=tmp_path) as send:
            assert await send.ended() == 0
        stored = await db.events.find_one({"_id": send.lines[-1]})
        assert (bytes(stored["payload"]), stored["event_type"]) == (body, "from.a.file")
        async with processes.running("send", "--count", "40", "--url", url, env=env) as send:
            assert await send.ended() == 0
        assert send.lines[-1] == "40 stored, 0 repeated, 0 refused"
        assert await db.events.count_documents({}) == 41
        wrong = {**env, "WDS_HMAC_SECRET": "another"}
        async with processes.running("send", "--count", "2", "--url", url, env=wrong) as send:
            assert await send.ended() == 1
        assert "2 x 401 invalid_signature" in send.text
        assert "Traceback" not in send.text


async def test_services_and_send_never_print_or_store_a_secret(engines, db, tmp_path):
    secrets = {
        "WDS_HMAC_SECRET": "hush-hmac hush-second",
        "WDS_OPERATOR_TOKEN": "hush-token",
        "WDS_DOWNSTREAM_URL": "http://user:hush-pass@127.0.0.1:1/hook?key=hush-query",
    }
    env = {**engines.environ(), "WDS_MONGO_DB": db.name, **secrets, "WDS_RATE_LIMIT": "0"}
    env |= {"WDS_BACKOFF": "0", "WDS_MAX_ATTEMPTS": "2"}
    async with processes.ingest(env, cwd=tmp_path) as ingest:
        url = f"{ingest.url}/webhooks/ingest"
        async with processes.dispatcher(env, cwd=tmp_path) as dispatcher:
            for secret in ("hush-hmac", "hush-wrong"):
                sender = {**env, "WDS_HMAC_SECRET": secret}
                async with processes.running("send", "--count", "1", "--url", url, env=sender) as s:
                    await s.ended()
            failed = {"status": "FAILED_PERMANENTLY"}
            await eventually(lambda: db.events.count_documents(failed))
            metrics = await processes.get_text(f"{dispatcher.url}/metrics")
    [document] = await db.events.find().to_list(None)
    for text in (ingest.text, dispatcher.text, metrics, s.text, repr(document)):
        assert "hush" not in text
    assert '"attempt"' in dispatcher.text
    assert os.environ.get("WDS_HMAC_SECRET") is None


async def test_check_accepts_a_sound_database_and_reports_violations(engines, db, store, tmp_path):
    env = {**engines.environ(), "WDS_MONGO_DB": db.name}
    await store.writer.insert([new_event(key=f"k{number}") for number in range(1200)])
    async with processes.running("check", "--payloads", env=env, cwd=tmp_path) as check:
        assert await check.ended() == 0, check.text
    assert "1,200 events checked" in check.text
    assert check.lines[-1] == "all invariants hold"
    broken = new_event(key="k7").id
    await db.events.update_one({"_id": broken}, {"$set": {"payload": b"x", "attempt_count": 9}})
    async with processes.running("check", env=env, cwd=tmp_path) as command:
        assert await command.ended() == 1
    assert command.lines[-1] == "2 violations"  # the count and the limit
    async with processes.running("check", "--payloads", env=env, cwd=tmp_path) as command:
        assert await command.ended() == 1
    assert command.lines[-1] == "3 violations"
    assert broken[:8] in command.text
