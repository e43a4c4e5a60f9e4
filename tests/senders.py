"""Signed requests of every provider, made by the providers' own libraries where there is one.

wds does not sign here, so these requests show that wds accepts what the providers send.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import stripe
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from multidict import CIMultiDict
from slack_sdk.signature import SignatureVerifier
from standardwebhooks import Webhook

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = b"0123456789abcdef0123456789abcdef"
STANDARD_SECRET = "whsec_" + base64.b64encode(KEY).decode()
PRIVATE = Ed25519PrivateKey.from_private_bytes(KEY)
PUBLIC_SECRET = "whpk_" + base64.b64encode(PRIVATE.public_key().public_bytes_raw()).decode()
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Sender:
    """How one provider signs, and the event type and key that wds must read from its request."""

    scheme: str
    secret: str
    sign: Callable[[bytes, int], dict[str, str]]
    body: bytes
    event_type: str
    key: str | None
    content_type: str = JSON

    def headers(self, body: bytes, now: int) -> CIMultiDict[str]:
        return CIMultiDict({"Content-Type": self.content_type, **self.sign(body, now)})


def _github(body: bytes, _now: int) -> dict[str, str]:
    digest = hmac.new(b"github-secret", body, hashlib.sha256).hexdigest()
    return {
        "X-Hub-Signature-256": f"sha256={digest}",
        "X-GitHub-Event": "issues",
        "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
    }


def _wds(body: bytes, _now: int) -> dict[str, str]:
    digest = hmac.new(b"wds-secret", body, hashlib.sha256).hexdigest()
    return {"X-Webhook-Signature": f"sha256={digest}"}


def _stripe(body: bytes, now: int) -> dict[str, str]:
    make = stripe.WebhookSignature.generate_signature_header
    return {"Stripe-Signature": make(body.decode(), "whsec_stripe", now)}


def _shopify(body: bytes, _now: int) -> dict[str, str]:
    digest = hmac.new(b"shopify-secret", body, hashlib.sha256).digest()
    return {
        "X-Shopify-Hmac-SHA256": base64.b64encode(digest).decode(),
        "X-Shopify-Topic": "orders/create",
        "X-Shopify-Webhook-Id": "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043",
    }


def _slack(body: bytes, now: int) -> dict[str, str]:
    made = SignatureVerifier("slack-secret").generate_signature(timestamp=str(now), body=body)
    return {"X-Slack-Request-Timestamp": str(now), "X-Slack-Signature": str(made)}


def _standard(body: bytes, now: int) -> dict[str, str]:
    # The library reads a naive UTC time.
    at = datetime.fromtimestamp(now, UTC).replace(tzinfo=None)
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(now),
        "webhook-signature": Webhook(STANDARD_SECRET).sign("msg_1", at, body.decode()),
    }


def _ed25519(body: bytes, now: int) -> dict[str, str]:
    made = PRIVATE.sign(b"msg_2.%d.%s" % (now, body))
    return {
        "webhook-id": "msg_2",
        "webhook-timestamp": str(now),
        "webhook-signature": "v1a," + base64.b64encode(made).decode(),
    }


def _json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


SENDERS = {
    "wds": Sender(
        "wds", "wds-secret", _wds, _json(event_type="a.b", idempotency_key="k1"), "a.b", "k1"
    ),
    "github": Sender(
        "github",
        "github-secret",
        _github,
        _json(action="opened", type="not this", idempotency_key="nor this"),
        "issues",
        "72d3162e-cc78-11e3-81ab-4c9367dc0958",
    ),
    "github form": Sender(
        "github",
        "github-secret",
        _github,
        b"payload=%7B%22action%22%3A%22opened%22%7D",
        "issues",
        "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        FORM,
    ),
    "stripe": Sender(
        "stripe",
        "whsec_stripe",
        _stripe,
        _json(id="evt_1", object="event", type="charge.succeeded"),
        "charge.succeeded",
        "evt_1",
    ),
    "shopify": Sender(
        "shopify",
        "shopify-secret",
        _shopify,
        _json(id=820982911946154500, type="x"),
        "orders/create",
        "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043",
    ),
    "slack": Sender(
        "slack",
        "slack-secret",
        _slack,
        _json(type="event_callback", event_id="Ev1", event={"type": "message"}),
        "message",
        "Ev1",
    ),
    "slack command": Sender(
        "slack", "slack-secret", _slack, b"command=%2Fdeploy&text=now", "/deploy", None, FORM
    ),
    "slack interaction": Sender(
        "slack",
        "slack-secret",
        _slack,
        b"payload=%7B%22type%22%3A%22block_actions%22%7D",
        "block_actions",
        None,
        FORM,
    ),
    "standard": Sender(
        "standard", STANDARD_SECRET, _standard, _json(type="user.created"), "user.created", "msg_1"
    ),
    "standard ed25519": Sender(
        "standard", PUBLIC_SECRET, _ed25519, _json(type="user.created"), "user.created", "msg_2"
    ),
}
