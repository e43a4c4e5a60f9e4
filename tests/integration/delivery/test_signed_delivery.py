"""Signed deliveries verify with libraries of others."""

from __future__ import annotations

import base64
import re
import time
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import standardwebhooks
import svix.webhooks

from tests.senders import KEY, PRIVATE
from tests.support import make_destination, receiving, send
from wds.delivery.http_client import HttpClient
from wds.domain.attempt_results import Delivered
from wds.domain.deliveries import Claim

NEW = "whsec_" + base64.b64encode(b"new secret of 24 bytes..").decode()
OLD = "whsec_" + base64.b64encode(b"old secret of 24 bytes..").decode()
PAIR = "whsk_" + base64.b64encode(KEY).decode()
PAYLOAD = '{"größe": 1e400, "a":1, "a":2}\r\n '.encode()
RECEIVE = Path(__file__).parents[3] / "docs" / "how-to" / "receive.md"
LIBRARIES = [standardwebhooks.Webhook, svix.webhooks.Webhook]


def claim(payload=PAYLOAD, attempt=1):
    return Claim(
        id="66c5bfb36c8ecc2cbc2ca2c1a5a2d0b4",
        token="t",
        attempt_number=attempt,
        leased_at=None,
        held_since=0,
        trusted_until=0,
        destination="default",
        event_type=None,
        content_type="application/json",
        payload=payload,
    )


@asynccontextmanager
async def delivering(*secrets):
    async with receiving() as receiver:
        client = HttpClient(make_destination(receiver.url, secrets=secrets))
        yield client, receiver
        await client.close()


def verified(library, secret, request):
    body = request.body
    arguments = {"json_parse": False} if library is standardwebhooks.Webhook else {}
    library(secret).verify(body, request.headers, **arguments)


@pytest.mark.parametrize("library", LIBRARIES, ids=["standardwebhooks", "svix"])
async def test_signature_verifies_with_either_secret_while_rotating(library):
    async with delivering(NEW, OLD) as (client, receiver):
        assert isinstance(await send(client, claim()), Delivered)
    [request] = receiver.requests

    assert request.body == PAYLOAD
    for secret in (NEW, OLD):
        verified(library, secret, request)
    other = "whsec_" + base64.b64encode(b"x" * 24).decode()
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verified(library, other, request)


@pytest.mark.parametrize("library", LIBRARIES, ids=["standardwebhooks", "svix"])
async def test_signature_does_not_verify_with_one_bit_changed(library):
    async with delivering(NEW) as (client, receiver):
        await send(client, claim(b'{"a":1}'))
    [request] = receiver.requests
    for bit in range(8 * len(request.body)):
        changed = bytearray(b'{"a":1}')
        changed[bit // 8] ^= 1 << bit % 8
        request.body = bytes(changed)
        with pytest.raises((standardwebhooks.WebhookVerificationError, UnicodeDecodeError)):
            verified(library, NEW, request)
    request.body = b'{"a":1}'
    verified(library, NEW, request)


async def test_signature_of_an_ed25519_key_stands_beside_that_of_a_secret():
    async with delivering(PAIR, NEW) as (client, receiver):
        await send(client, claim())
    [request] = receiver.requests
    first, _ = request.headers["webhook-signature"].split(" ")
    stamp = request.headers["webhook-timestamp"].encode()

    assert first.startswith("v1a,")
    signed = b"%s.%s.%s" % (request.headers["webhook-id"].encode(), stamp, PAYLOAD)
    PRIVATE.public_key().verify(base64.b64decode(first.removeprefix("v1a,")), signed)
    # The library knows only v1 and takes it from among the others.
    verified(standardwebhooks.Webhook, NEW, request)


async def test_signature_of_every_attempt_has_a_timestamp_of_its_own(monkeypatch):
    clock = iter([1_000_000_000, 1_000_000_060])
    real = time.time
    async with delivering(NEW) as (client, receiver):
        for attempt in (1, 2):
            now = next(clock)
            monkeypatch.setattr(time, "time", lambda now=now: now)
            await send(client, claim(attempt=attempt))
    monkeypatch.setattr(time, "time", real)
    first, second = (request.headers for request in receiver.requests)

    assert (first["webhook-timestamp"], second["webhook-timestamp"]) == ("1000000000", "1000000060")
    assert first["webhook-id"] == second["webhook-id"]
    assert first["webhook-signature"] != second["webhook-signature"]


async def test_signature_is_absent_without_a_secret():
    async with delivering() as (client, receiver):
        await send(client, claim())
    [request] = receiver.requests

    assert "webhook-signature" not in request.headers
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 5


async def test_receiver_in_the_documents_acts_once_and_only_on_signed_requests(
    aiohttp_server, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WDS_DOWNSTREAM_SECRET", NEW)
    [code] = re.findall(r"```python\n(.*?)```", RECEIVE.read_text(), re.DOTALL)
    receiver = {}
    exec(code, receiver)  # noqa: S102 - what the document says is what is tested
    server = await aiohttp_server(receiver["app"])
    statuses = []
    with closing(receiver["database"]) as database:
        for secrets, payload in (
            ((OLD,), b'{"total": 1}'),
            ((), b'{"total": 1}'),
            ((NEW,), b'{"no total": 1}'),  # fails after its id was inserted
            ((OLD, NEW), b'{"total": 99.5}'),
            ((NEW,), b'{"total": 99.5}'),
        ):
            url = str(server.make_url("/hooks"))
            client = HttpClient(make_destination(url, secrets=secrets))
            statuses.append((await send(client, claim(payload))).status_code)
            await client.close()
        assert statuses == [401, 401, 500, 200, 200]
        assert database.execute("select total from orders").fetchall() == [(99.5,)]
