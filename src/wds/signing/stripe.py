"""Stripe's signature: HMAC-SHA256 over `SECONDS.body`, in hex, with the seconds in the same header.

Format: https://docs.stripe.com/webhooks#verify-manually
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds.signing import hmac_sha256
from wds.signing.scheme import (
    RequestSignatures,
    Scheme,
    invalid_signature,
    read_timestamp,
    required_header,
)

if TYPE_CHECKING:
    from multidict import MultiMapping

    from wds.signing.scheme import EventInfo, Key

_FORMAT = "must be t=SECONDS,v1= and the hex HMAC-SHA256 of SECONDS.body"


def _read(headers: MultiMapping[str], body: bytes) -> RequestSignatures:
    pairs = [
        part.partition("=") for part in required_header(headers, "Stripe-Signature").split(",")
    ]
    times = [value for name, _, value in pairs if name == "t"]
    signatures = tuple(value for name, _, value in pairs if name == "v1")
    if len(times) != 1 or not all(map(hmac_sha256.HEX.fullmatch, signatures)):
        raise invalid_signature(_FORMAT)
    timestamp = read_timestamp(times[0], _FORMAT)
    return RequestSignatures(b"%s.%s" % (times[0].encode(), body), signatures, timestamp)


def _sign(key: Key, body: bytes, event: EventInfo) -> dict[str, str]:
    digits = hmac_sha256.sign_hex(key, b"%d.%s" % (event.timestamp, body))
    return {"Stripe-Signature": f"t={event.timestamp},v1={digits}"}


STRIPE = Scheme(
    name="stripe",
    headers=("Stripe-Signature",),
    header_format=_FORMAT,
    read_signatures=_read,
    matches=hmac_sha256.matches_hex,
    sign=_sign,
    event_type=("body:type",),
    idempotency_key=("body:id", "signature"),
    signs_timestamp=True,
    signs_idempotency_key=True,
)
