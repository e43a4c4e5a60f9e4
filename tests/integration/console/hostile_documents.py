"""Documents whose every text is hostile, as the database may hold them."""

from __future__ import annotations

import json
import random

from tests import history
from tests.support import new_event


def hostile_event(text, now):
    """Return a stored event with `text` in every field that may hold a sender's text."""
    attempt = {
        **history.attempt(1, now, random.Random(1), succeeds=False),
        "error": text,
        "response": text,
    }
    entry = {
        "action": "replay",
        "at": now,
        "by": text,
        "remote": text,
        "reason": text,
        "request_id": text,
        "status": "RECEIVED",
        "attempt_count": 0,
    }
    event = new_event(
        json.dumps({text: [text]}).encode(),
        event_type=text,
        key=text,
        headers={text.replace("\0", ""): text},
    )
    return history.made(
        event,
        now,
        [attempt],
        "FAILED_PERMANENTLY",
        source=text,
        destination=text,
        content_type=text,
        history=[entry],
    )


def fleet(text, now):
    """Return the fleet document with one replica."""
    return {
        "_id": "fleet",
        "retired": {},
        "replicas": [{"owner": text, "role": text, "totals": {}, "seen_at": now}],
    }


def bulk_action(text, now):
    """Return a stored bulk action that failed."""
    return {
        "_id": text,
        "action": "replay",
        "by": text,
        "remote": text,
        "reason": text,
        "filters": json.dumps({"event_type": [text]}),
        "limit": None,
        "per_second": None,
        "matched": 1,
        "examined": 1,
        "changed": 1,
        "state": "failed",
        "failure": text,
        "started_at": now,
        "finished_at": now,
    }
