"""The mock downstream keeps its limit, fails as told, and counts what it saw."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from tests.support import eventually
from wds.mock_downstream import create_app
from wds.web.server import listening

BEHAVIOUR = "/downstream/behaviour"


@dataclass
class Mock:
    """A client of one mock."""

    session: aiohttp.ClientSession
    url: str

    async def request(self, method, path, **more) -> tuple[int, Any]:
        async with self.session.request(method, self.url + path, **more) as response:
            return response.status, await response.json()

    async def deliver(self, event_id: str | None = None) -> int:
        headers = {} if event_id is None else {"webhook-id": event_id}
        url = self.url + "/downstream/receive"
        async with self.session.post(url, data=b"{}", headers=headers) as response:
            await response.read()
            return response.status

    async def deliver_many(self, count: int) -> list[int]:
        return [await self.deliver() for _ in range(count)]

    async def behave(self, **behaviour) -> tuple[int, Any]:
        return await self.request("PUT", BEHAVIOUR, json=behaviour)

    async def stats(self) -> dict[str, int]:
        status, stats = await self.request("GET", "/downstream/stats")
        assert status == 200
        return stats


@asynccontextmanager
async def running(**options):
    """Run a mock that fails nothing and limits nothing unless `options` say so."""
    app = create_app(**{"rate_limit": 0, "failure_rate": 0.0, **options})
    async with listening(app, "127.0.0.1", 0) as port, aiohttp.ClientSession() as session:
        yield Mock(session, f"http://127.0.0.1:{port}")


@pytest.fixture
async def mock():
    async with running() as made:
        yield made


@pytest.fixture
async def shared_window(engines):
    """Give the URL of a Redis in which the replicas' window is empty."""
    async with Redis.from_url(engines.redis_url) as redis:
        await redis.delete("mock:window")
        yield engines.redis_url
        await redis.delete("mock:window")


async def refusal(mock):
    """Deliver once more than is let in; return the headers and the body of the refusal."""
    async with mock.session.post(mock.url + "/downstream/receive", data=b"{}") as response:
        return response.status, response.headers.get("Retry-After"), await response.json()


async def test_receive_admits_3_a_second_and_tells_the_next_when_to_retry():
    async with running(rate_limit=3) as mock:
        assert await mock.deliver_many(3) == [200] * 3
        assert await refusal(mock) == (429, "1", {"status": "too many requests"})


async def test_window_admits_again_one_second_after_the_first_request(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("wds.mock_downstream.time", SimpleNamespace(monotonic=lambda: now))
    async with running(rate_limit=3) as mock:
        for instant, status in [(0, 200), (0.2, 200), (0.9, 200), (0.999, 429), (1.0, 200)]:
            now = 1000.0 + instant
            assert await mock.deliver() == status, instant
        assert await mock.deliver() == 429


async def test_receive_admits_everything_without_a_limit(mock):
    assert await mock.deliver_many(20) == [200] * 20


@pytest.mark.alone
@pytest.mark.parametrize("made", [[0], [1], [0, 1]], ids=["one", "the other", "both"])
async def test_window_is_shared_by_replicas_on_one_redis(shared_window, made):
    async with (
        running(rate_limit=3, redis_url=shared_window) as first,
        running(rate_limit=3, redis_url=shared_window) as second,
    ):
        mocks = [(first, second)[number] for number in made]
        for _ in range(5):  # until the machine was fast enough to tell
            began = time.monotonic()
            statuses = [await mocks[n % len(mocks)].deliver() for n in range(3)]
            refused = [await refusal(each) for each in (first, second)]
            if time.monotonic() - began < 1:
                break
            await asyncio.sleep(1.1)
        await eventually(second.deliver, lambda status: status == 200)
        waited = time.monotonic() - began

    assert statuses == [200] * 3
    assert refused == [(429, "1", {"status": "too many requests"})] * 2
    assert waited >= 1.0


async def test_window_holds_for_simultaneous_requests_on_two_replicas(shared_window):
    async with (
        running(rate_limit=3, redis_url=shared_window) as first,
        running(rate_limit=3, redis_url=shared_window) as second,
    ):
        many = [each.deliver() for _ in range(20) for each in (first, second)]
        statuses = await asyncio.gather(*many)

    assert sorted(statuses) == [200] * 3 + [429] * 37


async def failures(**options):
    async with running(**options) as mock:
        return await mock.deliver_many(60)


async def test_seed_makes_the_failures_repeatable():
    first = await failures(failure_rate=0.5, seed=7)

    assert set(first) == {200, 500}
    assert await failures(failure_rate=0.5, seed=7) == first
    assert await failures(failure_rate=0.5, seed=8) != first


@pytest.mark.parametrize(("rate", "status"), [(0.0, 200), (1.0, 500)])
async def test_failure_rate_of_0_or_1_is_exact(rate, status):
    assert await failures(failure_rate=rate) == [status] * 60


async def test_failure_rate_is_about_the_share_that_fails():
    assert 3 <= (await failures(failure_rate=0.15, seed=1)).count(500) <= 18


async def test_stats_count_each_request_by_its_result():
    async with running(rate_limit=3) as mock:
        before = await mock.stats()
        await mock.deliver()
        await mock.behave(mode="fail", rate_limit=3)
        await mock.deliver_many(4)
        after = await mock.stats()

    assert before == dict.fromkeys(after, 0)
    assert after == {
        "received": 5,
        "accepted": 1,
        "limited": 2,
        "failed": 2,
        "repeated": 0,
        "most_in_one_second": 5,
    }


async def test_stats_most_in_one_second_forgets_older_requests(mock):
    await mock.deliver_many(3)
    last = time.monotonic()

    async def since_the_last():
        return time.monotonic() - last

    await eventually(since_the_last, lambda passed: passed > 1)
    await mock.deliver_many(2)

    assert (await mock.stats())["most_in_one_second"] == 3


async def test_stats_count_a_repeat_only_after_the_event_was_accepted(mock):
    repeated = []
    for mode in ("fail", "fail", "normal", "normal", "fail"):
        await mock.behave(mode=mode)
        await mock.deliver("evt-1")
        repeated.append((await mock.stats())["repeated"])
    await mock.deliver("evt-2")
    await mock.deliver()
    await mock.deliver()

    assert repeated == [0, 0, 0, 1, 2]
    assert (await mock.stats())["repeated"] == 2


async def test_stats_do_not_count_a_limited_request_as_accepted():
    async with running(rate_limit=1) as mock:
        statuses = [await mock.deliver(event_id) for event_id in ("evt-1", "evt-2", "evt-2")]
        assert statuses == [200, 429, 429]
        assert (await mock.stats())["repeated"] == 0


@pytest.mark.parametrize(
    ("behaviour", "status", "result"),
    [
        ({"mode": "normal"}, 200, "accepted"),
        ({"mode": "normal", "failure_rate": 1}, 500, "failed"),
        ({"mode": "fail"}, 500, "failed"),
        ({"mode": "status"}, 503, "failed"),
        ({"mode": "status", "status": 418}, 418, "failed"),
        ({"mode": "status", "status": 302}, 302, "failed"),
        ({"mode": "status", "status": 202}, 202, "accepted"),
        ({"mode": "status", "status": 204}, 204, "accepted"),
    ],
    ids=str,
)
async def test_receive_answers_as_the_behaviour_says(mock, behaviour, status, result):
    answered, shown = await mock.behave(**behaviour)

    assert answered == 200
    assert shown.items() >= behaviour.items()
    assert await mock.deliver_many(3) == [status] * 3
    assert (await mock.stats())[result] == 3


async def test_receive_in_mode_slow_answers_normally_after_the_delay(mock):
    await mock.behave(mode="slow", delay_s=0.3)
    began = time.monotonic()
    statuses = await asyncio.gather(mock.deliver(), mock.deliver())

    assert statuses == [200, 200]
    assert time.monotonic() - began >= 0.3
    assert (await mock.stats())["accepted"] == 2


async def test_receive_in_mode_hang_drops_the_connection_without_an_answer(mock):
    await mock.behave(mode="hang", delay_s=0.3)
    began = time.monotonic()
    with pytest.raises(aiohttp.ClientConnectionError):
        await mock.deliver("evt-1")

    assert time.monotonic() - began >= 0.3
    stats = await mock.stats()
    assert (stats["received"], stats["accepted"], stats["failed"]) == (1, 0, 1)


async def test_behaviour_limit_applies_from_the_next_request_on(mock):
    assert await mock.deliver_many(5) == [200] * 5
    await mock.behave(rate_limit=1)
    assert await mock.deliver_many(2) == [200, 429]
    await mock.behave(rate_limit=0)
    assert await mock.deliver_many(2) == [200, 200]


async def test_behaviour_fields_that_a_change_omits_return_to_their_start():
    async with running(failure_rate=0.25, rate_limit=7) as mock:
        start = await mock.request("GET", BEHAVIOUR)
        await mock.behave(mode="status", status=418, failure_rate=0.5, rate_limit=9)
        changed = await mock.request("GET", BEHAVIOUR)
        await mock.behave()
        back = await mock.request("GET", BEHAVIOUR)

    normal = {"mode": "normal", "status": 503, "delay_s": 5.0}
    assert start == back == (200, {"failure_rate": 0.25, "rate_limit": 7, **normal})
    assert changed[1] == {**start[1], "mode": "status", "status": 418} | {
        "failure_rate": 0.5,
        "rate_limit": 9,
    }


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b'{"mode":"explode"}', 422, "mode"),
        (b'{"mode":{"$gt":""}}', 422, "mode"),
        (b'{"status":199}', 422, "status"),
        (b'{"status":"503"}', 422, "status"),
        (b'{"delay_s":-1}', 422, "delay_s"),
        (b'{"delay_s":NaN}', 422, "delay_s"),
        (b'{"failure_rate":1.5}', 422, "failure_rate"),
        (b'{"rate_limit":-1}', 422, "rate_limit"),
        (b'{"rate_limit":null}', 422, "rate_limit"),
        (b'{"speed":1}', 422, "speed"),
        (b"[]", 422, "_schema"),
        (b"null", 422, "_schema"),
        (b"mode=fail", 400, None),
        (b"", 400, None),
        (b'{"mode":"\xff"}', 400, None),
        (b"[" * 100_000, 400, None),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else None,
)
async def test_behaviour_that_is_invalid_is_refused_and_changes_nothing(mock, body, status, field):
    before = await mock.request("GET", BEHAVIOUR)
    answered, answer = await mock.request("PUT", BEHAVIOUR, data=body)

    assert answered == status
    assert set(answer["error"]) == {"code", "message", "details"}
    assert [d["field"] for d in answer["error"]["details"]] == [field] * (status == 422)
    assert await mock.request("GET", BEHAVIOUR) == before


async def test_behaviour_in_an_unknown_charset_is_answered_4xx(mock):
    headers = {"Content-Type": "application/json; charset=klingon"}
    async with mock.session.put(mock.url + BEHAVIOUR, data=b"{}", headers=headers) as response:
        assert 400 <= response.status < 500


async def test_app_has_health_metrics_and_its_openapi_document(mock):
    await mock.deliver()
    pages = {}
    for path in ("/healthz", "/metrics", "/docs", "/docs/openapi.json"):
        async with mock.session.get(mock.url + path) as response:
            pages[path] = (response.status, await response.text())

    assert {status for status, _ in pages.values()} == {200}
    assert 'mock_downstream_requests_total{result="accepted"}' in pages["/metrics"][1]
    # Of the same process, but of others: a mock that says wds_store_up 0 sets off an alert.
    assert "wds_" not in pages["/metrics"][1]
    assert 'src="/docs/static/swagger-ui-bundle.js"' in pages["/docs"][1]
    assert "/downstream/receive" in pages["/docs/openapi.json"][1]


async def test_docs_page_is_the_same_as_that_of_ingest(mock):
    """The bundled one takes orders from its query, and runs a script within itself."""
    for query, status in (("", 200), ("?url=https://evil.example/x.json", 302)):
        address = f"{mock.url}/docs{query}"
        async with mock.session.get(address, allow_redirects=False) as response:
            assert response.status == status
            if status == 200:
                assert response.headers["Content-Security-Policy"].startswith("default-src 'none';")
                page = await response.text()
                assert "<script>" not in page and "/console" not in page
            else:
                assert response.headers["Location"] == "/docs"
    async with mock.session.get(f"{mock.url}/docs/static/page.js") as response:
        assert 'url: "/docs/openapi.json"' in await response.text()
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    async with mock.session.get(f"{mock.url}/docs/static/oauth2-redirect.html") as response:
        assert response.status == 404
