"""Sample data for the console: events of every status, with their attempts, over some hours."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta

from wds.cli.sample_events import generate
from wds.domain.events import NewEvent, random_id
from wds.storage.event_documents import event_document

MS = timedelta(milliseconds=1)
ANSWERS = [
    (503, "HTTP 503", '{"error":"upstream timed out","retry":true}'),
    (500, "HTTP 500", "Internal Server Error"),
    (429, "HTTP 429", '{"error":"slow down"}'),
    (None, "no answer within 10 s", None),
]


def attempt(number, at, chance, *, succeeds):
    code, error, response = (200, None, '{"ok":true}') if succeeds else chance.choice(ANSWERS)
    return {
        "attempt_number": number,
        "timestamp": at,
        "status_code": code,
        "success": succeeds,
        "outcome": "success" if succeeds else "failure",
        "duration_ms": 10_000 if code is None else chance.randint(12, 640),
        "error": error,
        "response": response,
    }


def made(event, received_at, attempts, status, **more):
    """Return the document of an event with these attempts."""
    document = {
        **event_document(event, received_at),
        "status": status,
        "attempt_count": len(attempts),
        "attempts": attempts,
        **more,
    }
    if attempts:
        document["last_status_code"] = attempts[-1]["status_code"] or 0
    if status in {"DELIVERED", "FAILED_PERMANENTLY"}:
        document["finished_at"] = attempts[-1]["timestamp"] + 40 * MS
        del document["next_attempt_at"]
    return document


def past(now, count, *, hours=24, seed=7):
    """Return documents of `count` events received in the `hours` before `now`.

    As seen at four in the afternoon: busier by day, with an outage seven to five hours ago. The
    result depends on `seed` alone, so the number of each kind is the same at every time of day.
    """
    chance = random.Random(seed)
    documents = []
    for sample in generate(count, seed):
        while True:
            age = hours * chance.random()
            hour = (16 - age) % 24
            if chance.random() < 0.35 + 0.65 * max(0.0, 1 - abs(hour - 14) / 9):
                break
        received = now - timedelta(hours=age)
        received = received.replace(microsecond=received.microsecond // 1000 * 1000)
        event = NewEvent(
            id=random_id(received, chance.randbytes(10)),
            source="default",
            payload=sample.body,
            content_type="application/json",
            event_type=sample.event_type or json.loads(sample.body).get("type"),
            headers={"user-agent": "GitHub-Hookshot/044aadd", "x-request-id": "7f1c2a"},
        )
        outage = 9 <= hour < 11
        outcome = chance.random()
        failures = 0 if outcome > (0.55 if outage else 0.12) else chance.randint(1, 4)
        fails = outcome < (0.22 if outage else 0.015)
        attempts = []
        at = received + 30 * MS
        for number in range(1, (5 if fails else failures + 1) + 1):
            succeeds = not fails and number == failures + 1
            attempts.append(attempt(number, at, chance, succeeds=succeeds))
            at += timedelta(seconds=2 ** (number - 1))
        status = "FAILED_PERMANENTLY" if fails else "DELIVERED"
        documents.append(made(event, received, attempts, status))
    return documents


def waiting(now, chance):
    """Return documents of live events: some new, some between attempts."""
    documents = []
    for number in range(9):
        received = now - timedelta(seconds=4 + number * 3)
        event = NewEvent(
            id=random_id(received, chance.randbytes(10)),
            source="default",
            payload=b'{"event_type":"order.created","order":{"id":%d}}' % number,
            content_type="application/json",
            event_type="order.created",
        )
        attempts = [attempt(1, received, chance, succeeds=False)] if number % 3 else []
        status = "DELIVERING" if attempts else "RECEIVED"
        due = now + timedelta(seconds=number - 4)
        documents.append(made(event, received, attempts, status, next_attempt_at=due))
    return documents


def replicas(now):
    """Return the document of all replicas: four, one of them silent for some minutes."""
    heard = [("ingest", "web-1", 1), ("ingest", "web-2", 0), ("dispatcher", "worker-1", 1)]
    silent = [("dispatcher", "worker-2", 192)]
    return {
        "_id": "fleet",
        "retired": {},
        "replicas": [
            {
                "owner": f"{host}-{7000 + number}-5fc{number}a1",
                "role": role,
                "totals": {},
                "seen_at": now - timedelta(seconds=ago),
            }
            for number, (role, host, ago) in enumerate([*heard, *silent])
        ],
    }


def utc_now():
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
