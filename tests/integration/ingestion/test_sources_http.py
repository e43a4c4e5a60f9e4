"""Sources over HTTP: requests are accepted as the providers send them."""

from __future__ import annotations

import json
import time

import aiohttp
import pytest
from prometheus_client import REGISTRY

from tests.senders import SENDERS
from wds.domain.events import derived_id
from wds.ingest import create_app
from wds.ingestion import sources
from wds.web.server import listening


def configured():
    """Return one source for each sender, named like it with `-` for a space."""
    text = "".join(
        f"[sources.{name.replace(' ', '-')}]\nscheme = '{sender.scheme}'\n"
        f"secrets = ['{sender.secret}']\n"
        for name, sender in SENDERS.items()
    )
    text += "[sources.rotating]\nscheme = 'slack'\nsecrets = ['new-secret', 'slack-secret']\n"
    return sources.load(text, {}, "wds.toml")


@pytest.fixture
async def post(settings, store, db):  # noqa: ARG001 - `db` drops the database
    """Yield a function that posts as a sender and returns status and text of the answer."""
    async with (
        listening(create_app(settings, store, configured()), "127.0.0.1", 0) as port,
        aiohttp.ClientSession() as session,
    ):

        async def post(sender, body=None, *, to=None, now=None, **changes):
            body = sender.body if body is None else body
            name = next(name for name, each in SENDERS.items() if each is sender)
            headers = sender.headers(body, int(time.time()) if now is None else now)
            headers.update({name.replace("_", "-"): value for name, value in changes.items()})
            url = f"http://127.0.0.1:{port}/webhooks/ingest/{to or name.replace(' ', '-')}"
            async with session.post(url, data=body, headers=headers) as response:
                return response.status, await response.text()

        post.url = f"http://127.0.0.1:{port}"
        post.session = session
        yield post


@pytest.mark.parametrize("name", SENDERS)
async def test_source_stores_a_providers_request_with_its_type_and_key(post, db, name):
    sender = SENDERS[name]
    status, text = await post(sender)

    is_slack_form = name in {"slack command", "slack interaction"}
    assert (status, bool(text)) == ((200, False) if is_slack_form else (202, True))
    [stored] = await db.events.find().to_list(None)
    assert stored["payload"] == sender.body
    assert stored["source"] == name.replace(" ", "-")
    assert stored["event_type"] == sender.event_type
    assert stored["content_type"] == sender.content_type
    if sender.key is not None:
        assert stored["idempotency_key"] == sender.key
        assert stored["_id"] == derived_id(stored["source"], sender.key)


async def test_source_accepts_a_request_through_a_proxy(post):
    changes = {"Host": "hooks.example.com", "X_Forwarded_For": "140.82.115.1"}
    status, text = await post(SENDERS["github"], **changes)

    assert status == 202, text


@pytest.mark.parametrize("name", SENDERS)
async def test_source_recognises_the_same_request_as_a_repeat(post, db, name):
    now = int(time.time())
    answers = [await post(SENDERS[name], now=now) for _ in range(3)]

    assert {status for status, _ in answers[1:]} == {200}
    assert await db.events.count_documents({}) == 1


@pytest.mark.parametrize("name", SENDERS)
async def test_source_refuses_a_changed_body(post, db, name):
    sender = SENDERS[name]
    headers = sender.headers(sender.body, int(time.time()))
    body = sender.body.replace(b"e", b"E", 1)
    assert body != sender.body
    url = f"{post.url}/webhooks/ingest/{name.replace(' ', '-')}"
    async with post.session.post(url, data=body, headers=headers) as response:
        answer = await response.json()

    assert (response.status, answer["error"]["code"]) == (401, "invalid_signature")
    assert await db.events.count_documents({}) == 0


async def test_source_recognises_a_retry_with_a_new_signature_as_a_repeat(post, db):
    """Stripe counts its pending deliveries in the event, so a retry has other bytes."""
    sender = SENDERS["stripe"]
    first, _ = await post(sender, b'{"id":"evt_9","type":"x","pending_webhooks":2}')
    second, text = await post(sender, b'{"id":"evt_9","type":"x","pending_webhooks":1}')

    assert (first, second) == (202, 200)
    assert json.loads(text)["duplicate"] is True
    [stored] = await db.events.find().to_list(None)
    assert stored["payload"].endswith(b'"pending_webhooks":2}')


async def test_source_refuses_other_bytes_under_an_unsigned_key(post, db):
    sender = SENDERS["github"]
    first, _ = await post(sender, b'{"n":1}')
    second, text = await post(sender, b'{"n":2}')

    assert (first, second) == (202, 409)
    assert json.loads(text)["error"]["code"] == "idempotency_conflict"
    assert await db.events.count_documents({}) == 1


async def test_sources_with_equal_keys_store_separate_events(post, db):
    await post(SENDERS["github"])
    status, _ = await post(SENDERS["github form"])

    assert status == 202
    assert await db.events.count_documents({}) == 2


@pytest.mark.parametrize("name", ["stripe", "slack", "standard"])
@pytest.mark.parametrize("off", [-400, 400])
async def test_source_refuses_a_stale_or_future_request(post, db, name, off):
    status, text = await post(SENDERS[name], now=int(time.time()) + off)

    assert (status, json.loads(text)["error"]["code"]) == (401, "timestamp_out_of_tolerance")
    assert await db.events.count_documents({}) == 0


async def test_slack_challenge_is_answered_and_not_stored(post, db):
    body = b'{"type":"url_verification","token":"t","challenge":"3eZbrw1aBm2rZgRNFdxV2595E9CY"}'
    status, text = await post(SENDERS["slack"], body)

    assert (status, json.loads(text)) == (200, {"challenge": "3eZbrw1aBm2rZgRNFdxV2595E9CY"})
    assert await db.events.count_documents({}) == 0


@pytest.mark.parametrize("challenge", [b"7", b"null", b'"%s"' % (b"x" * 513), b'"\\ud800"'])
async def test_slack_challenge_that_is_malformed_is_refused(post, challenge):
    body = b'{"type":"url_verification","challenge":%s}' % challenge
    status, _ = await post(SENDERS["slack"], body)

    assert status == 422


async def test_slack_challenge_from_another_provider_is_an_event(post):
    body = b'{"type":"url_verification","challenge":"x"}'
    assert (await post(SENDERS["stripe"], body))[0] == 202
    assert (await post(SENDERS["slack"], body, X_Slack_Signature="v0=" + "0" * 64))[0] == 401


@pytest.mark.parametrize("name", ["wds", "stripe", "shopify", "standard"])
async def test_source_refuses_a_form_from_a_provider_that_sends_none(post, db, name):
    status, text = await post(
        SENDERS[name], b"a=1", Content_Type="application/x-www-form-urlencoded"
    )

    assert (status, json.loads(text)["error"]["code"]) == (415, "unsupported_media_type")
    assert await db.events.count_documents({}) == 0


async def test_unknown_source_is_answered_404(post, db):
    for name in ("nobody", "default", "%00", "github%2Fx"):
        async with post.session.post(f"{post.url}/webhooks/ingest/{name}", data=b"{}") as response:
            answer = await response.json(content_type=None)
        wanted = (401, "missing_signature") if name == "default" else (404, answer["error"]["code"])
        assert (response.status, answer["error"]["code"]) == wanted
    assert await db.events.count_documents({}) == 0


async def test_signatures_verified_metric_counts_by_secret(post):
    def verified(secret):
        labels = {"source": "rotating", "secret": secret}
        return REGISTRY.get_sample_value("wds_signatures_verified_total", labels)

    before = verified("1"), verified("2")
    assert None not in before
    assert (await post(SENDERS["slack"], to="rotating"))[0] == 202
    assert (verified("1"), verified("2")) == (before[0], before[1] + 1)


async def test_get_event_shows_a_form_as_text_and_its_payload_as_bytes(post):
    sender = SENDERS["slack command"]
    await post(sender)
    wanted = {"include_payload": True}
    async with post.session.post(f"{post.url}/webhooks/search", json=wanted) as response:
        [event] = (await response.json())["events"]
    async with post.session.get(f"{post.url}/webhooks/events/{event['id']}/payload") as response:
        exact = await response.read()

    assert event["payload"] == sender.body.decode()
    assert exact == sender.body
    assert response.content_type == "application/x-www-form-urlencoded"


async def test_source_refuses_a_repeated_header_that_it_reads(post, db):
    for name in ("X-GitHub-Delivery", "X-GitHub-Event", "Content-Type", "Content-Encoding"):
        sender = SENDERS["github"]
        headers = sender.headers(sender.body, 0)
        headers.add(name, headers.get(name, "identity"))
        if name == "Content-Encoding":
            headers.add(name, "gzip")
        url = f"{post.url}/webhooks/ingest/github"
        async with post.session.post(url, data=sender.body, headers=headers) as response:
            answer = await response.json()
        # The parser of HTTP itself refuses a second Content-Type.
        code = "malformed_http" if name == "Content-Type" else "repeated_header"
        assert (response.status, answer["error"]["code"]) == (400, code)
    assert await db.events.count_documents({}) == 0
