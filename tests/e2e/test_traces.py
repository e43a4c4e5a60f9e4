"""Traces of real processes: from the sender to the downstream, and nothing while off."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest

from tests.e2e import processes
from tests.e2e.collector import collecting
from tests.support import eventually, receiving, signed
from wds.local import embedded_engines
from wds.local.replica_set import initiate_replica_set

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
SENDERS = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "tracestate": "vendor=opaque"}
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


@pytest.fixture
def env(engines, db):
    return {
        **engines.environ(),
        "WDS_MONGO_DB": db.name,
        "WDS_RATE_LIMIT": "0",
        "WDS_BACKOFF": "0.2",
        "WDS_REQUEST_TIMEOUT": "1",
    }


@asynccontextmanager
async def everything(env, cwd):
    """Run ingest, a dispatcher and a receiver; yield them, ready."""
    async with receiving() as receiver, AsyncExitStack() as stack:
        env = {**env, "WDS_DOWNSTREAM_URL": f"{receiver.url}?key=hush-query"}
        made = []
        for name, port_of in (("ingest", "WDS_PORT"), ("dispatcher", "WDS_METRICS_PORT")):
            port = embedded_engines.free_port()
            url = f"http://127.0.0.1:{port}"
            own = {**env, port_of: str(port)}
            process = await stack.enter_async_context(
                processes.running(name, env=own, cwd=cwd, url=url)
            )
            await processes.ready(process, "/readyz")
            made.append(process)
        yield receiver, *made


async def send(url: str, body: bytes, path: str = "", **headers: str | bytes) -> dict:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{url}/webhooks/ingest{path}", data=body, headers={**signed(body), **headers}
        ) as response,
    ):
        assert response.status == 202
        return await response.json()


async def send_raw(url: str, header: bytes) -> None:
    """Send an event with a header that no client would write."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed(b"{}").items())
    head = f"POST /webhooks/ingest HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n{lines}"
    writer.write(head.encode() + header + b"\r\n{}")
    assert b" 202 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


def fail_first(receiver):
    """Answer 500 to the first request for each event, 200 to the others."""

    async def answer(request):
        event_id = request.headers["webhook-id"]
        return aiohttp.web.Response(status=500 if receiver.ids.count(event_id) == 1 else 200)

    return answer


async def delivered(db, count: int) -> None:
    done = {"status": "DELIVERED"}
    await eventually(lambda: db.events.count_documents(done), lambda seen: seen == count)


def traceparents(receiver) -> list[str]:
    return [request.headers["traceparent"] for request in receiver.requests]


async def test_trace_leads_from_the_sender_through_a_retry_to_the_downstream(env, db, tmp_path):
    async with collecting() as collector:
        on = {**env, **QUICK, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        on["WDS_RATE_LIMIT"] = "50"
        async with everything(on, tmp_path) as (receiver, ingest, dispatcher):
            receiver.answer = fail_first(receiver)
            event_id = (await send(ingest.url, b'{"type": "t"}', **SENDERS))["id"]
            await delivered(db, 1)
            shown = await processes.get_json(f"{ingest.url}/webhooks/events/{event_id}")
            assert await dispatcher.stop() == 0
            assert await ingest.stop() == 0
    [look] = collector.named("GET /webhooks/events/{id}")  # an operator's, a trace of its own
    assert {span.trace_id for span in collector.spans if span is not look} == {TRACE_ID}
    [request], [sending], [insert] = map(
        collector.named, ("POST /webhooks/ingest", "send default", "insert events")
    )
    assert (request.kind, request.parent_id, request.service) == ("server", SPAN_ID, "wds-ingest")
    assert request.attributes["http.route"] == "/webhooks/ingest"
    assert request.attributes["http.response.status_code"] == 202
    assert (sending.kind, sending.parent_id) == ("producer", request.id)
    assert sending.attributes["messaging.message.id"] == event_id
    assert (insert.kind, insert.parent_id) == ("client", sending.id)
    assert insert.attributes["db.system.name"] == "mongodb"
    assert request.began <= sending.began <= insert.began
    assert insert.ended <= sending.ended <= request.ended

    first, second = collector.named("process default")
    assert {first.parent_id, second.parent_id} == {sending.id}
    assert {first.service, second.service} == {"wds-dispatcher"}
    assert (first.kind, first.failed, second.failed) == ("consumer", True, False)
    assert [each.attributes["wds.attempt"] for each in (first, second)] == [1, 2]
    assert [each.attributes["wds.status"] for each in (first, second)] == [
        "DELIVERING",
        "DELIVERED",
    ]
    for process in (first, second):
        assert collector.below(process) == ["POST", "settle default", "slot"]
    posts = collector.named("POST")
    assert [post.kind for post in posts] == ["client", "client"]
    assert [post.attributes["http.response.status_code"] for post in posts] == [500, 200]
    assert [post.attributes.get("http.request.resend_count") for post in posts] == [None, 1]
    assert [post.attributes.get("error.type") for post in posts] == ["500", None]
    assert [post.failed for post in posts] == [True, False]
    assert traceparents(receiver) == [f"00-{TRACE_ID}-{post.id}-01" for post in posts]
    assert {request.headers["tracestate"] for request in receiver.requests} == {"vendor=opaque"}

    queued = collector.named("queue default")
    assert {each.parent_id for each in queued} == {sending.id}
    backoff_s = 0.2
    for wait, process in zip(queued, (first, second), strict=True):
        assert wait.ended == process.began
    assert queued[1].began >= first.ended + backoff_s * 1e9 - 50e6  # not the backoff itself
    assert shown["trace"] == {
        "traceparent": f"00-{TRACE_ID}-{sending.id}-01",
        "tracestate": "vendor=opaque",
    }
    assert b"hush" not in collector.raw


async def test_trace_id_is_on_the_log_lines(env, db, tmp_path):
    async with collecting() as collector:
        on = {**env, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        async with everything(on, tmp_path) as (_, ingest, dispatcher):
            await send(ingest.url, b"{}", **SENDERS)
            await delivered(db, 1)
            assert await dispatcher.stop() == 0
            assert await ingest.stop() == 0
    for process, event in ((ingest, "received"), (dispatcher, "attempt")):
        [line] = [line for line in map(json.loads, process.lines) if line["event"] == event]
        assert line["trace_id"] == TRACE_ID


async def test_trace_of_a_batch_request_has_every_event_of_the_batch(env, db, tmp_path):
    async with collecting() as collector:
        # The address of the traces' own variable is taken as it is.
        on = {**env, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces"}
        async with everything(on, tmp_path) as (receiver, ingest, dispatcher):
            answer = await send(ingest.url, b'[{"n": 1}, {"n": 2}, {"n": 3}]', "/batch")
            await delivered(db, 3)
            assert await dispatcher.stop() == 0
            assert await ingest.stop() == 0
    [request], [sending], [insert] = map(
        collector.named, ("POST /webhooks/ingest/batch", "send default", "insert events")
    )
    assert request.parent_id == ""
    assert sending.attributes["messaging.batch.message_count"] == 3
    assert (insert.parent_id, insert.attributes["db.operation.batch.size"]) == (sending.id, 3)
    assert {span.trace_id for span in collector.spans} == {request.trace_id}
    ids = {each["id"] for each in answer["events"]}
    handled = collector.named("process default")
    assert {each.attributes["messaging.message.id"] for each in handled} == ids
    assert {each.parent_id for each in handled} == {sending.id}
    sent = {f"00-{request.trace_id}-{post.id}" for post in collector.named("POST")}
    assert len(sent) == 3
    assert {each.rpartition("-")[0] for each in traceparents(receiver)} == sent


async def test_trace_of_each_request_shows_a_write_that_several_share(env, db, tmp_path):
    count = 40
    async with collecting() as collector:
        on = {**env, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        async with everything(on, tmp_path) as (_, ingest, dispatcher):
            await asyncio.gather(*(send(ingest.url, b"{}") for _ in range(count)))
            await delivered(db, count)
            assert await dispatcher.stop() == 0
            assert await ingest.stop() == 0
    inserts = collector.named("insert events")
    sends = collector.named("send default")
    assert len(sends) == count
    assert sorted(each.parent_id for each in inserts) == sorted(each.id for each in sends)
    assert max(each.attributes["db.operation.batch.size"] for each in inserts) > 1


async def test_trace_is_not_recorded_if_the_sender_does_not_sample(env, db, tmp_path):
    """Nothing is exported, and the decision and the trace id still reach the downstream."""
    async with collecting() as collector:
        on = {**env, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        async with everything(on, tmp_path) as (receiver, ingest, dispatcher):
            await send(ingest.url, b"{}", traceparent=f"00-{TRACE_ID}-{SPAN_ID}-00")
            await delivered(db, 1)
            assert await dispatcher.stop() == 0
            assert await ingest.stop() == 0
    assert collector.spans == []
    assert re.fullmatch(f"00-{TRACE_ID}-[0-9a-f]{{16}}-00", traceparents(receiver)[0])


async def test_trace_begins_at_the_delivery_for_an_event_stored_without_one(env, db, tmp_path):
    async with processes.ingest(env, cwd=tmp_path) as ingest:
        await send(ingest.url, b"{}", **SENDERS)
        assert await ingest.stop() == 0
    [stored] = await db.events.find().to_list(None)
    assert "trace" not in stored
    async with collecting() as collector:
        on = {**env, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        async with everything(on, tmp_path) as (receiver, _, dispatcher):
            await delivered(db, 1)
            assert await dispatcher.stop() == 0
    [process] = collector.named("process default")
    assert process.parent_id == ""
    assert collector.below(process) == ["POST", "queue default", "settle default"]
    assert process.trace_id in traceparents(receiver)[0]


async def test_trace_shows_an_unreachable_downstream_as_a_failed_request(env, db, tmp_path):
    nobody = f"http://127.0.0.1:{embedded_engines.free_port()}/hush-path"
    async with collecting() as collector:
        on = {**env, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "WDS_MAX_ATTEMPTS": "1"}
        async with AsyncExitStack() as stack:
            ingest = await stack.enter_async_context(processes.ingest(on, cwd=tmp_path))
            on["WDS_DOWNSTREAM_URL"] = nobody
            dispatcher = await stack.enter_async_context(processes.dispatcher(on, cwd=tmp_path))
            await send(ingest.url, b"{}")
            failed = {"status": "FAILED_PERMANENTLY"}
            await eventually(lambda: db.events.count_documents(failed))
            assert await dispatcher.stop() == 0
    [post] = collector.named("POST")
    assert (post.failed, post.attributes["error.type"]) == (True, "ClientConnectorError")
    assert b"hush" not in collector.raw


async def test_trace_with_hostile_text_breaks_neither_request_nor_export(env, db, tmp_path):
    async with collecting() as collector:
        on = {**env, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        hostile = [
            {"traceparent": "00-nonsense"},
            {"traceparent": f"00-{'0' * 32}-{SPAN_ID}-01"},
            {**SENDERS, "tracestate": ",".join(f"k{n}={'v' * 200}" for n in range(30))},
        ]
        async with everything(on, tmp_path) as (receiver, ingest, dispatcher):
            await send_raw(ingest.url, b"User-Agent: \xff\xfe agent\r\n")
            for headers in hostile:
                await send(ingest.url, b"{}", **headers)
            await delivered(db, 1 + len(hostile))
            assert await dispatcher.stop() == 0
            assert await ingest.stop() == 0
    requests = collector.named("POST /webhooks/ingest")
    assert len(requests) == len(collector.named("POST")) == 1 + len(hostile)
    assert requests[0].attributes["user_agent.original"] == "?? agent"
    assert [request.parent_id for request in requests] == ["", "", "", SPAN_ID]
    assert not [each for each in receiver.requests if "tracestate" in each.headers]


WATCH_IMPORTS = """
import sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "opentelemetry":
            return None
        frame = sys._getframe()
        while frame is not None:
            if frame.f_globals.get("__name__", "").startswith("redis."):
                raise ModuleNotFoundError(name, name=name)
            frame = frame.f_back
        print("imported", name, file=sys.stderr)

sys.meta_path.insert(0, Watch())
"""
"""Reports each import of OpenTelemetry. redis-py looks for it by itself, and does not find it."""


@pytest.fixture
def watched(tmp_path):
    """Return what makes a process report its imports of OpenTelemetry."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH_IMPORTS)
    return {"PYTHONPATH": str(tmp_path / "watch")}


@pytest.mark.parametrize(
    "off",
    [
        {},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    ],
    ids=["unset", "disabled", "none"],
)
async def test_tracing_off_imports_stores_and_passes_on_nothing(env, db, tmp_path, watched, off):
    async with everything({**env, **watched, **off}, tmp_path) as (receiver, *parts):
        await send(parts[0].url, b"{}", **SENDERS)
        await delivered(db, 1)
        for part in parts:
            assert await part.stop() == 0
            assert "imported opentelemetry" not in part.text
    assert "traceparent" not in {name.lower() for name in receiver.requests[0].headers}
    [stored] = await db.events.find().to_list(None)
    assert "trace" not in stored
    assert stored["headers"]["traceparent"] == SENDERS["traceparent"]


@pytest.mark.parametrize("command", ["ingest", "dispatcher"])
async def test_control_imports_are_seen_while_tracing_is_on(env, tmp_path, watched, command):
    on = {**env, **watched, "OTEL_TRACES_EXPORTER": "otlp", "WDS_METRICS_PORT": "0"}
    on["WDS_PORT"] = str(embedded_engines.free_port())
    async with processes.running(command, env=on, cwd=tmp_path) as made:
        await eventually(lambda: "imported opentelemetry.sdk.trace" in made.lines)


async def test_tracing_without_the_extra_is_logged_and_everything_works(env, db, tmp_path):
    shadow = tmp_path / "not_installed" / "opentelemetry"
    shadow.mkdir(parents=True)
    missing = "raise ModuleNotFoundError(\"No module named 'opentelemetry'\", name='opentelemetry')"
    (shadow / "__init__.py").write_text(missing)
    on = {**env, "PYTHONPATH": str(shadow.parent), "OTEL_TRACES_EXPORTER": "otlp"}
    async with everything(on, tmp_path) as (_, ingest, dispatcher):
        await send(ingest.url, b"{}")
        await delivered(db, 1)
        for part in (dispatcher, ingest):
            assert await part.stop() == 0
            [line] = [
                line for line in map(json.loads, part.lines) if line["event"] == "tracing_off"
            ]
            assert (line["level"], line["cure"]) == ("warning", "pip install 'wds[otel]'")


async def test_collector_that_does_not_answer_delays_neither_deliveries_nor_exit(env, db, tmp_path):
    taken = asyncio.Event()
    connections = []

    async def never(_reader, writer):
        connections.append(writer)
        taken.set()

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        on = {**env, **QUICK, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        async with everything(on, tmp_path) as (_, ingest, dispatcher):
            await send(ingest.url, b"{}")
            await delivered(db, 1)
            await taken.wait()
            for part in (ingest, dispatcher):
                since = time.monotonic()
                assert await part.stop() == 0
                assert time.monotonic() - since < 8  # it would be asked for ten
                assert "traces_lost" in part.text
                assert "Traceback" not in part.text
    finally:
        server.close()
        for each in connections:
            each.close()


@pytest.mark.alone
async def test_exit_is_in_time_though_mongodb_and_the_collector_do_not_answer(env, tmp_path):
    """Both at once still leave the promise: the request timeout and 5 s."""
    connections = []

    async def never(_reader, writer):
        connections.append(writer)

    collector = await asyncio.start_server(never, "127.0.0.1", 0)
    port = collector.sockets[0].getsockname()[1]
    server = await embedded_engines.start_mongod(tmp_path / "mongo")
    try:
        await initiate_replica_set("127.0.0.1", server.port, embedded_engines.REPLICA_SET)
        async with receiving() as receiver:
            held = asyncio.Event()

            async def hold(_):
                held.set()
                await asyncio.sleep(0.5)
                return aiohttp.web.Response()

            receiver.answer = hold
            on = {
                **env,
                "WDS_MONGO_URL": f"mongodb://127.0.0.1:{server.port}/?replicaSet=wds",
                "WDS_DOWNSTREAM_URL": receiver.url,
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            }
            async with processes.ingest(on, cwd=tmp_path) as ingest:
                await send(ingest.url, b"{}")
                async with processes.dispatcher(on, cwd=tmp_path) as dispatcher:
                    await held.wait()
                    server.process.send_signal(signal.SIGSTOP)
                    since = time.monotonic()
                    assert await dispatcher.stop() == 0
                    assert time.monotonic() - since < 1 + 5
                    assert "traces_lost" in dispatcher.text
    finally:
        server.process.send_signal(signal.SIGCONT)
        await server.stop()
        collector.close()
        for each in connections:
            each.close()


async def test_tracing_reads_its_settings_from_dot_env(env, db, tmp_path):
    async with collecting() as collector:
        lines = f"OTEL_EXPORTER_OTLP_ENDPOINT={collector.url}\nOTEL_SERVICE_NAME=hooks\n"
        (tmp_path / ".env").write_text(lines)
        async with everything(env, tmp_path) as (_, ingest, dispatcher):
            await send(ingest.url, b"{}")
            await delivered(db, 1)
            assert await dispatcher.stop() == 0
            assert await ingest.stop() == 0
    assert {span.service for span in collector.spans} == {"hooks"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
    ],
)
async def test_tracing_names_a_setting_that_cannot_be_used(env, tmp_path, name, value):
    on = {**env, "OTEL_TRACES_EXPORTER": "otlp", name: value}
    async with processes.running("ingest", env=on, cwd=tmp_path) as made:
        assert await made.ended() == 2
    assert made.lines[-1].startswith("wds: OTEL_")
    assert "Traceback" not in made.text
