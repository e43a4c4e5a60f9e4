"""The page of one event, and its payload as a file."""

from __future__ import annotations

import re

import pytest

from tests.support import new_event


async def test_event_page_shows_attempts_headers_and_payload(get_page, stored_events):
    event = next(each for each in stored_events if each["attempt_count"] == 3)
    page = await get_page(f"/console/events/{event['_id']}")
    for attempt in event["attempts"]:
        assert f"Attempt {attempt['attempt_number']} " in page.text
        for shown in (attempt["error"], attempt["response"]):
            assert shown is None or shown in page.text
    for shown in ("user-agent", "GitHub-Hookshot/044aadd", event["payload_sha256"].hex()):
        assert shown in page.text
    assert re.sub(r"\s", "", event["payload"].decode()) in re.sub(r"\s", "", page.text)


@pytest.mark.parametrize(
    "payload", [b'{"a":"' + b"x" * 900_000 + b'"}', b'{"a":[' + b"1," * 300_000 + b"1]}"]
)
async def test_event_page_cuts_a_large_payload_and_the_download_does_not(get_page, store, payload):
    event = new_event(payload)
    await store.writer.insert([event])
    page = await get_page(f"/console/events/{event.id}")
    assert "Truncated" in page.text
    assert len(page.html) < 2_500_000
    assert (await get_page(f"/console/events/{event.id}/payload")).html.encode() == payload


async def test_event_page_shows_a_payload_that_is_not_json_as_text(get_page, db, store):
    event = new_event(b"payload=%7B%22a%22%3A1%7D&x=\xff<b>")
    await store.writer.insert([event])
    page = await get_page(f"/console/events/{event.id}")
    assert await db.events.count_documents({}) == 1
    assert "payload=%7B%22a%22%3A1%7D&x=\ufffd<b>" in page.text
    assert not page.all("pre", class_="json")


async def test_payload_download_is_a_file_with_the_exact_bytes(get_page, store):
    payload = b'{"a":"<script>alert(1)</script>\xc3\xa9", "n": 1e400}'
    event = new_event(payload, key="k")
    await store.writer.insert([event])
    file = await get_page(f"/console/events/{event.id}/payload")
    assert file.html.encode() == payload
    assert file.headers["Content-Type"] == "application/octet-stream"
    assert file.headers["Content-Disposition"] == f'attachment; filename="{event.id}.json"'
    assert file.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert file.headers["X-Content-Type-Options"] == "nosniff"
