"""Bad input gets a 4xx with a reason and changes nothing; odd but legitimate input is accepted."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import hmac
import io
import json
import tracemalloc
import zlib

import pytest
from multidict import CIMultiDict
from yarl import URL

from tests.support import SECRET, signed
from wds.signing.hmac_sha256 import sign

LIMIT = 1024 * 1024
BODY = b'{"n":1}'
DIGEST = hmac.new(SECRET.encode(), BODY, hashlib.sha256)
SIGNATURE = "X-Webhook-Signature"
BOMB = gzip.compress(bytes(10_000_000))
DEEP = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"


def padded(size):
    return b'{"a":"' + b"x" * (size - 8) + b'"}'


async def in_chunks(body):
    for start in range(0, len(body), 64 * 1024):
        yield body[start : start + 64 * 1024]


def assert_refused(answer, code):
    assert set(answer) == {"error"}
    error = answer["error"]
    assert set(error) == {"code", "message", "details"}
    assert error["code"] == code
    assert isinstance(error["message"], str) and error["message"]
    assert all(set(detail) == {"field", "message"} for detail in error["details"])


def signature(value):
    return (401, "invalid_signature", BODY, {SIGNATURE: value})


def not_json(body):
    return (400, "invalid_json", body, {})


def wrong_shape(body, **headers):
    return (422, "invalid_request", body, {n.replace("_", "-"): v for n, v in headers.items()})


def wrong_type(code, value):
    return (415, code, BODY, {"Content-Type": value})


def encoded(name, body):
    return (415, "unsupported_encoding", body, {"Content-Encoding": name})


INGEST = {
    "no signature": (401, "missing_signature", BODY, {SIGNATURE: None}),
    "empty signature": signature(""),
    "forged signature": signature(sign("guess", BODY)),
    "signature of another body": signature(sign(SECRET, b'{"n":2}')),
    "truncated signature": signature(sign(SECRET, BODY)[:-1]),
    "lengthened signature": signature(sign(SECRET, BODY) + "0"),
    "upper-case hex": signature("sha256=" + DIGEST.hexdigest().upper()),
    "upper-case prefix": signature("SHA256=" + DIGEST.hexdigest()),
    "no prefix": signature(DIGEST.hexdigest()),
    "prefix of another hash": signature("sha1=" + DIGEST.hexdigest()),
    "base64": signature("sha256=" + base64.b64encode(DIGEST.digest()).decode()),
    "non-ASCII signature": signature("sha256=" + "é" * 64),
    "non-ASCII digits": signature("sha256=" + "\uff11" * 64),
    "list of signatures": signature(f"{sign('x', BODY)}, {sign(SECRET, BODY)}"),
    "forged beside valid": (
        401,
        "invalid_signature",
        BODY,
        {"X-Hub-Signature-256": sign("x", BODY)},
    ),
    "not JSON": not_json(b"hello"),
    "form": not_json(b"a=1&b=2"),
    "cut off": not_json(b'{"a":1'),
    "text behind": not_json(b'{"a":1} {"b":2}'),
    "comma behind": not_json(b'{"a":1,}'),
    "single quotes": not_json(b"{'a':1}"),
    "NaN": not_json(b'{"a":NaN}'),
    "Infinity": not_json(b'{"a":Infinity}'),
    "minus Infinity": not_json(b'{"a":[-Infinity]}'),
    "raw NUL in a string": not_json(b'{"a":"\x00"}'),
    "raw NUL behind": not_json(b"{}\x00"),
    "raw newline in a string": not_json(b'{"a":"\n"}'),
    "invalid UTF-8": not_json(b'{"a":"\xff"}'),
    "overlong UTF-8": not_json(b'{"a":"\xc0\xaf"}'),
    "surrogate in UTF-8": not_json(b'{"a":"\xed\xa0\x80"}'),
    "UTF-16": not_json('{"a":1}'.encode("utf-16")),
    "UTF-16 without BOM": not_json('{"a":1}'.encode("utf-16-le")),
    "BOM": not_json(b"\xef\xbb\xbf{}"),
    "empty body": not_json(b""),
    "white space only": not_json(b" \n"),
    "200,000 levels": not_json(DEEP),
    "array": wrong_shape(b'[{"a":1}]'),
    "string": wrong_shape(b'"a"'),
    "number": wrong_shape(b"1"),
    "null": wrong_shape(b"null"),
    "true": wrong_shape(b"true"),
    "key a number": wrong_shape(b'{"idempotency_key":7}'),
    "key an operator": wrong_shape(b'{"idempotency_key":{"$gt":""}}'),
    "key empty": wrong_shape(b'{"idempotency_key":""}'),
    "key of 256 characters": wrong_shape(b'{"idempotency_key":"%s"}' % (b"k" * 256)),
    "key a lone surrogate": wrong_shape(rb'{"idempotency_key":"\ud800"}'),
    "key with a NUL": wrong_shape(rb'{"idempotency_key":"a\u0000"}'),
    "bad key beside a good header": wrong_shape(b'{"idempotency_key":7}', Idempotency_Key="k"),
    "header key empty": wrong_shape(BODY, Idempotency_Key=""),
    "header key of 256 characters": wrong_shape(BODY, Idempotency_Key="k" * 256),
    "text/plain": wrong_type("unsupported_media_type", "text/plain"),
    "form type": wrong_type("unsupported_media_type", "application/x-www-form-urlencoded"),
    "text/json": wrong_type("unsupported_media_type", "text/vnd.a+json"),
    "no content type": wrong_type("unsupported_media_type", None),
    "empty content type": wrong_type("unsupported_media_type", ""),
    "non-ASCII content type": wrong_type("unsupported_media_type", "application/json; a=é"),
    "unknown charset": wrong_type("unsupported_charset", "application/json; charset=klingon"),
    "utf-16 charset": wrong_type("unsupported_charset", "application/json; charset=utf-16"),
    "gzip": encoded("gzip", gzip.compress(BODY)),
    "gzip bomb": encoded("gzip", BOMB),
    "gzip in capitals": encoded("GZIP", gzip.compress(BODY)),
    "deflate": encoded("deflate", zlib.compress(BODY)),
    "br": encoded("br", BODY),
    "unknown encoding": encoded("rot13", BODY),
    "over the limit": (413, "body_too_large", padded(LIMIT + 1), {}),
    "far over the limit": (413, "body_too_large", padded(3 * LIMIT), {}),
}


async def send(client, body, headers, *, chunked=False):
    merged = CIMultiDict({**signed(body), **headers})
    given = {name: value for name, value in merged.items() if value is not None}
    async with client.session.post(
        client.url + "/webhooks/ingest",
        data=in_chunks(body) if chunked else io.BytesIO(body),
        headers=given,
        skip_auto_headers=["Content-Type"],
    ) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("case", INGEST.values(), ids=INGEST)
async def test_ingest_refuses_a_bad_event_with_a_reason_and_stores_nothing(client, db, case):
    status, code, body, headers = case
    answered, answer = await send(client, body, headers)

    assert answered == status
    assert_refused(answer, code)
    assert await db.events.count_documents({}) == 0


async def test_ingest_refuses_a_chunked_body_over_the_limit(client, db):
    status, answer = await send(client, padded(LIMIT + 1), {}, chunked=True)

    assert status == 413
    assert_refused(answer, "body_too_large")
    assert await db.events.count_documents({}) == 0


async def test_ingest_accepts_two_signatures_only_if_both_are_valid(client, db):
    for other, status in ((sign("x", BODY), 401), (sign(SECRET, BODY), 202)):
        headers = CIMultiDict(signed(BODY))
        headers.add(SIGNATURE, other)
        answered, _ = await client.post("/webhooks/ingest", BODY, headers)
        assert (answered, await db.events.count_documents({})) == (status, int(status == 202))


async def test_ingest_never_inflates_a_gzip_bomb(client):
    await client.ingest(BODY)
    tracemalloc.start()
    try:
        status, _ = await send(client, BOMB, {"Content-Encoding": "gzip"})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert status == 415
    assert peak < 1_000_000


LEGITIMATE = {
    "escaped NUL": rb'{"a":"\u0000"}',
    "50 levels": b'{"a":' * 50 + b"1" + b"}" * 50,
    "exactly at the limit": padded(LIMIT),
    "empty object": b"{}",
    "empty name": b'{"":{"":""}}',
    "names with dots and dollars": b'{"a.b":1,"$where":"1","__proto__":{}}',
    "key of 255 characters": '{"idempotency_key":"%s"}'.replace("%s", "é" * 255).encode(),
    "integer of 5,000 digits as key's neighbour": b'{"idempotency_key":"k","n":-'
    + b"1" * 5000
    + b"}",
}


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("body", LEGITIMATE.values(), ids=LEGITIMATE)
async def test_ingest_stores_an_odd_but_legitimate_event_unchanged(client, db, body, chunked):
    status, _ = await send(client, body, {}, chunked=chunked)

    assert status == 202
    assert [each["payload"] async for each in db.events.find()] == [body]


@pytest.mark.parametrize(
    "value",
    ["application/json; charset=UTF-8", "APPLICATION/JSON", "application/vnd.a+json;charset=utf8"],
)
async def test_ingest_stores_the_content_type_as_sent(client, db, value):
    status, _ = await client.ingest(BODY, Content_Type=value)
    stored = await db.events.find_one()

    assert (status, stored["content_type"]) == (202, value)


def cursor(text):
    return base64.urlsafe_b64encode(text.encode()).decode()


SEARCHES = {
    "operator as status": ({"status": {"$gt": ""}}, "status.0"),
    "operator in a list": ({"status": ["RECEIVED", {"$gt": ""}]}, "status.1"),
    "operator as event_type": ({"event_type": {"$ne": None}}, "event_type.0"),
    "operator as from": ({"from": {"$gt": ""}}, "from"),
    "operator as skip": ({"skip": {"$gt": 0}}, "skip"),
    "operator as cursor": ({"cursor": {"$gt": ""}}, "cursor"),
    "operator as include_payload": ({"include_payload": {"$gt": ""}}, "include_payload"),
    "operator as field": ({"$where": "sleep(1000)"}, "$where"),
    "unknown field": ({"colour": "default"}, "colour"),
    "lone surrogate as field": ({"\ud800": 1}, "\ud800"),
    "unknown status": ({"status": "LOST"}, "status.0"),
    "status in lower case": ({"status": "received"}, "status.0"),
    "no status": ({"status": []}, "status"),
    "101 statuses": ({"status": ["RECEIVED"] * 101}, "status"),
    "null status": ({"status": None}, "status"),
    "number as event_type": ({"event_type": 7}, "event_type.0"),
    "lone surrogate as event_type": ({"event_type": "\ud800"}, "event_type.0"),
    "words as date": ({"from": "yesterday"}, "from"),
    "13th month": ({"to": "2026-13-01T00:00:00Z"}, "to"),
    "number as date": ({"from": 1700000000}, "from"),
    "null date": ({"from": None}, "from"),
    "date past the year 9999": ({"to": "9999-12-31T23:59:59-01:00"}, "to"),
    "date before the year 1": ({"from": "0001-01-01T00:00:00+01:00"}, "from"),
    "to before from": ({"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "to"),
    "negative skip": ({"skip": -1}, "skip"),
    "far skip": ({"skip": 100_001}, "skip"),
    "fraction as skip": ({"skip": 1.5}, "skip"),
    "true as skip": ({"skip": True}, "skip"),
    "limit 0": ({"limit": 0}, "limit"),
    "limit 501": ({"limit": 501}, "limit"),
    "limit 1e9": ({"limit": 1_000_000_000}, "limit"),
    "limit past 64 bits": ({"limit": 10**30}, "limit"),
    "text as limit": ({"limit": "10"}, "limit"),
    "text as boolean": ({"aggregations": "yes"}, "aggregations"),
    "null cursor": ({"cursor": None}, "cursor"),
    "cursor not base64": ({"cursor": "žluť"}, "cursor"),
    "cursor without a number": ({"cursor": cursor("now:a")}, "cursor"),
    "cursor past the year 9999": ({"cursor": cursor(f"{10**20}:a")}, "cursor"),
    "cursor of 5,000 digits": ({"cursor": cursor("9" * 5000)}, "cursor"),
}


@pytest.mark.parametrize(("body", "field"), SEARCHES.values(), ids=SEARCHES)
async def test_search_refuses_a_bad_field_by_its_name(client, body, field):
    status, answer = await client.post("/webhooks/search", json.dumps(body).encode())

    assert status == 422
    assert_refused(answer, "invalid_request")
    assert [detail["field"] for detail in answer["error"]["details"]] == [field]


async def test_search_lists_every_problem_of_a_request(client):
    status, answer = await client.post("/webhooks/search", b'{"skip":-1,"limit":0,"x":1}')

    assert status == 422
    assert {detail["field"] for detail in answer["error"]["details"]} == {"skip", "limit", "x"}


@pytest.mark.parametrize(
    ("status", "code", "body"),
    [
        pytest.param(400, "invalid_json", b"{", id="cut off"),
        pytest.param(400, "invalid_json", b'{"limit":NaN}', id="NaN"),
        pytest.param(400, "invalid_json", '{"limit":1}'.encode("utf-16"), id="UTF-16"),
        pytest.param(400, "invalid_json", DEEP, id="200,000 levels"),
        pytest.param(422, "invalid_request", b"[]", id="array"),
        pytest.param(422, "invalid_request", b"null", id="null"),
        pytest.param(422, "invalid_request", b'{"limit":%s}' % (b"9" * 5000), id="5,000 digits"),
        pytest.param(422, "invalid_request", b'{"limit":1e999}', id="1e999"),
        pytest.param(413, "body_too_large", padded(LIMIT + 1), id="over the limit"),
    ],
)
async def test_search_refuses_a_body_that_is_not_a_request(client, status, code, body):
    answered, answer = await client.post("/webhooks/search", io.BytesIO(body))

    assert answered == status
    assert_refused(answer, code)


@pytest.mark.parametrize("rest", ["", "/payload"], ids=["event", "payload"])
@pytest.mark.parametrize(
    "event_id",
    ["0" * 32, "%00", "a" * 5000, "%C5%BE%F0%9F%90%8E", "%FF", "%ED%A0%80", "$ne", "a%2Fb", "%20"],
    ids=["unknown", "NUL", "long", "unicode", "no UTF-8", "surrogate", "operator", "/", "space"],
)
async def test_get_event_answers_404_for_an_unknown_id(client, event_id, rest):
    url = URL(f"{client.url}/webhooks/events/{event_id}{rest}", encoded=True)
    async with client.session.get(url) as response:
        status, answer = response.status, await response.json()

    assert status == 404
    assert_refused(answer, "not_found")


async def test_get_event_answers_400_for_an_id_in_raw_bytes(client):
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(client.url).port)
    writer.write(b"GET /webhooks/events/\xed\xa0\x80\xff HTTP/1.1\r\nHost: a\r\n\r\n")
    status = (await reader.readline()).split()[1]
    writer.close()
    await writer.wait_closed()

    assert status in {b"400", b"404"}


@pytest.mark.parametrize("path", ["/webhooks", "/webhooks/ingest/", "/webhooks/events/", "/%00"])
async def test_unknown_path_is_answered_404(client, path):
    async with client.session.get(URL(client.url + path, encoded=True)) as response:
        status, answer = response.status, await response.json()

    assert status == 404
    assert_refused(answer, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/webhooks/ingest", "POST"),
        ("PUT", "/webhooks/ingest/batch", "POST"),
        ("GET", "/webhooks/search", "POST"),
        ("DELETE", "/webhooks/events/x", "GET"),
        ("POST", "/healthz", "GET"),
        ("PATCH", "/webhooks/search", "POST"),
    ],
)
async def test_wrong_method_is_answered_405_with_the_right_one(client, method, path, allowed):
    async with client.session.request(method, client.url + path) as response:
        status, answer = response.status, await response.json()

        assert status == 405
        assert_refused(answer, "method_not_allowed")
        assert response.headers.get("Allow") == allowed
