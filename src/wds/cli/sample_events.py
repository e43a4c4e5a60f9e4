"""Sample events, with the shapes that well-known providers post. Pure.

They follow the providers' public documentation. No person, repository or account in them is real.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, slots=True)
class Sample:
    """A body to post, and the event's type."""

    event_type: str
    body: bytes


def generate(count: int, seed: int, provider: str | None = None) -> Iterator[Sample]:
    """Yield `count` samples, each shape in turn. The same seed yields the same bytes.

    `provider` selects the shapes of one provider; all shapes if it is None or has no shapes here.
    """
    rng = random.Random(seed)  # noqa: S311 - sample data, not secrets
    shapes = [(kind, _SHAPES[kind]) for kind in _PROVIDERS.get(provider or "", _SHAPES)]
    for number in range(count):
        event_type, shape = shapes[number % len(shapes)]
        body = json.dumps(shape(rng, seed * 1000 + number), ensure_ascii=False)
        yield Sample(event_type, body.encode())


def _hex(rng: random.Random, length: int) -> str:
    return f"{rng.getrandbits(length * 4):0{length}x}"


def _push(rng: random.Random, number: int) -> dict[str, Any]:
    head = _hex(rng, 40)
    commits = [
        {
            "id": _hex(rng, 40),
            "message": rng.choice(["Fix the flaky timer", "Größe prüfen 📏", "Bump dependencies"]),
            "timestamp": "2026-03-01T12:00:00+01:00",
            "author": {"name": "Ada Example", "email": "ada@example.com", "username": "ada"},
            "added": [],
            "removed": [],
            "modified": [f"src/module_{rng.randrange(40)}.py"],
        }
        for _ in range(rng.randrange(1, 12))
    ]
    return {
        "type": "push",
        "ref": "refs/heads/main",
        "before": _hex(rng, 40),
        "after": head,
        "repository": {"id": number, "name": "engine", "full_name": "example/engine"},
        "pusher": {"name": "ada", "email": "ada@example.com"},
        "commits": commits,
        "head_commit": commits[-1],
    }


def _charge(rng: random.Random, number: int) -> dict[str, Any]:
    return {
        "id": f"evt_{_hex(rng, 24)}",
        "object": "event",
        "type": "charge.succeeded",
        "api_version": "2025-09-30",
        "created": 1_772_000_000 + number,
        "livemode": False,
        "data": {
            "object": {
                "id": f"ch_{_hex(rng, 24)}",
                "amount": rng.randrange(100, 100_000),
                "currency": rng.choice(["eur", "usd", "jpy"]),
                "billing_details": {"name": "Grace Example", "email": None},
                "metadata": {"order": str(number)},
            }
        },
    }


def _order(rng: random.Random, number: int) -> dict[str, Any]:
    lines = [
        {
            "id": rng.getrandbits(40),
            "title": rng.choice(["Lamp", "Chaise longue", "やかん"]),
            "quantity": rng.randrange(1, 5),
            "price": f"{rng.randrange(1, 400)}.{rng.randrange(100):02d}",
        }
        for _ in range(rng.randrange(1, 8))
    ]
    return {
        "event_type": "orders/create",
        "id": number,
        "name": f"#{number}",
        "currency": "EUR",
        "line_items": lines,
        "shipping_address": {"city": "Zürich", "country_code": "CH"},
    }


def _message(rng: random.Random, number: int) -> dict[str, Any]:
    return {
        "type": "event_callback",
        "team_id": "T0EXAMPLE",
        "event_id": f"Ev{number:08d}",
        "event": {
            "type": "message",
            "channel": "C0EXAMPLE",
            "user": "U0EXAMPLE",
            "text": rng.choice(["deploy finished ✅", "who is on call?", "ship it"]),
            "ts": f"{1_772_000_000 + number}.000100",
        },
    }


def _issue(rng: random.Random, number: int) -> dict[str, Any]:
    return {
        "event_type": "issues",
        "action": "opened",
        "issue": {
            "number": number,
            "title": "It works on my machine",
            "body": 'Steps:\n\n1. Run it\n2. Read "nothing" twice\n'
            + "detail " * rng.randrange(99),
            "labels": [{"name": "bug", "color": _hex(rng, 6)}],
        },
        "sender": {"login": "ada", "id": 1},
    }


_SHAPES: dict[str, Callable[[random.Random, int], dict[str, Any]]] = {
    "push": _push,
    "charge.succeeded": _charge,
    "orders/create": _order,
    "event_callback": _message,
    "issues": _issue,
}
_PROVIDERS: dict[str, tuple[str, ...]] = {
    "github": ("push", "issues"),
    "stripe": ("charge.succeeded",),
    "shopify": ("orders/create",),
    "slack": ("event_callback",),
}
