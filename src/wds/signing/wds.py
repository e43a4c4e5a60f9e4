"""The scheme of wds's own senders: GitHub's signature, under wds's header or GitHub's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds.signing import hmac_sha256
from wds.signing.github import read_prefixed
from wds.signing.scheme import Scheme

if TYPE_CHECKING:
    from wds.signing.scheme import EventInfo, Key


def _sign(key: Key, body: bytes, event: EventInfo) -> dict[str, str]:
    headers = {
        "X-Webhook-Signature": hmac_sha256.sign_prefixed(key, body),
        "Idempotency-Key": event.id,
    }
    if event.event_type is not None:
        headers["X-Event-Type"] = event.event_type
    return headers


WDS = Scheme(
    name="wds",
    headers=("X-Webhook-Signature", "X-Hub-Signature-256"),
    header_format=hmac_sha256.PREFIXED_FORMAT,
    read_signatures=read_prefixed("X-Webhook-Signature", "X-Hub-Signature-256"),
    matches=hmac_sha256.matches_prefixed,
    sign=_sign,
    event_type=("body:event_type", "body:type", "header:X-Event-Type", "header:X-GitHub-Event"),
    idempotency_key=("body:idempotency_key", "header:Idempotency-Key"),
    all_must_match=True,
)
