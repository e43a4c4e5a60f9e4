"""Shopify's signature: HMAC-SHA256 over the body alone, in base64.

Format: https://shopify.dev/docs/apps/build/webhooks/subscribe/https
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds.signing import hmac_sha256
from wds.signing.scheme import RequestSignatures, Scheme, invalid_signature, required_header

if TYPE_CHECKING:
    from multidict import MultiMapping

    from wds.signing.scheme import EventInfo, Key

_FORMAT = "must be the base64 HMAC-SHA256 of the raw body"


def _read(headers: MultiMapping[str], body: bytes) -> RequestSignatures:
    value = required_header(headers, "X-Shopify-Hmac-SHA256")
    if not hmac_sha256.BASE64.fullmatch(value):
        raise invalid_signature(_FORMAT)
    return RequestSignatures(body, (value,))


def _sign(key: Key, body: bytes, event: EventInfo) -> dict[str, str]:
    return {
        "X-Shopify-Hmac-SHA256": hmac_sha256.sign_base64(key, body),
        "X-Shopify-Topic": event.event_type or "app/uninstalled",
        "X-Shopify-Webhook-Id": event.id,
    }


SHOPIFY = Scheme(
    name="shopify",
    headers=("X-Shopify-Hmac-SHA256",),
    header_format=_FORMAT,
    read_signatures=_read,
    matches=hmac_sha256.matches_base64,
    sign=_sign,
    event_type=("header:X-Shopify-Topic",),
    idempotency_key=("header:X-Shopify-Webhook-Id",),
)
