"""Standard Webhooks: keys, signatures over `id.SECONDS.body`, and the scheme of its senders.

It is used in both directions: to verify senders that follow it, and to sign deliveries. Format:
https://github.com/standard-webhooks/standard-webhooks (spec/standard-webhooks.md).

    v1,  and base64 HMAC-SHA256        whsec_ and base64 of 24 to 64 bytes
    v1a, and base64 ed25519 signature  whpk_ public, whsk_ private, and base64 of 32 bytes
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from wds.signing.scheme import (
    RequestSignatures,
    Scheme,
    invalid_signature,
    read_timestamp,
    required_header,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from multidict import MultiMapping

    from wds.signing.scheme import EventInfo, Key

_FORMAT = (
    "must be v1, and the base64 HMAC-SHA256 of id.SECONDS.body,"
    " or v1a, and its base64 ed25519 signature; several are separated by spaces"
)
_SECRET_BYTES = range(24, 65)
_ED25519_BYTES = 32


def read_key(text: str) -> Key:
    """Read one key.

    Raises:
        ValueError: `text` is not a key. The message says what a key looks like and does not
            repeat `text`.
    """
    kind, _, encoded = text.partition("_")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if kind == "whsec" and len(raw) in _SECRET_BYTES:
        return raw
    if kind == "whpk" and len(raw) == _ED25519_BYTES:
        return Ed25519PublicKey.from_public_bytes(raw)
    # Some libraries append the public half to the private one.
    if kind == "whsk" and len(raw) in {_ED25519_BYTES, 2 * _ED25519_BYTES}:
        return Ed25519PrivateKey.from_private_bytes(raw[:_ED25519_BYTES])
    msg = (
        "must be whsec_ and the base64 of 24 to 64 bytes,"
        " or whpk_ or whsk_ and the base64 of an ed25519 key"
    )
    raise ValueError(msg)


def content(message_id: str, timestamp: str, body: bytes) -> bytes:
    """Return the bytes to sign. Undecodable bytes of an id are restored as received."""
    return b"%s.%s.%s" % (message_id.encode("utf-8", "surrogateescape"), timestamp.encode(), body)


def sign(keys: Sequence[Key], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the three headers, with a signature of every key: receivers may hold any of them.

    Raises:
        ValueError: one of `keys` is a public key.
    """
    signed = content(message_id, str(timestamp), body)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_signature(key, signed) for key in keys),
    }


def matches(key: Key, signed: bytes, signatures: Iterable[str]) -> set[str]:
    """Return those of `signatures` (ASCII) that `key` made over `signed`, in constant time."""
    if isinstance(key, bytes):
        expected = _signature(key, signed)
        return {each for each in signatures if hmac.compare_digest(expected, each)}
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return {each for each in signatures if _is_ed25519(public, signed, each)}


def _signature(key: Key, signed: bytes) -> str:
    if isinstance(key, bytes):
        return "v1," + _base64(hmac.new(key, signed, hashlib.sha256).digest())
    if isinstance(key, Ed25519PrivateKey):
        return "v1a," + _base64(key.sign(signed))
    msg = "a public key (whpk_) verifies and cannot sign; use the private one (whsk_)"
    raise ValueError(msg)


def _is_ed25519(key: Ed25519PublicKey, signed: bytes, text: str) -> bool:
    version, _, encoded = text.partition(",")
    try:
        raw = base64.b64decode(encoded, validate=True)
        if version != "v1a" or _base64(raw) != encoded:  # base64 has several spellings
            return False
        key.verify(raw, signed)
    except (binascii.Error, ValueError, InvalidSignature):
        return False
    return True


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _read(headers: MultiMapping[str], body: bytes) -> RequestSignatures:
    message_id = required_header(headers, "webhook-id")
    text = required_header(headers, "webhook-timestamp")
    signatures = tuple(required_header(headers, "webhook-signature").split(" "))
    timestamp = read_timestamp(text, _FORMAT)
    if not all(map(str.isascii, signatures)):
        raise invalid_signature(_FORMAT)
    # An id may contain full stops, so the parts could be cut elsewhere. That gains an attacker
    # nothing: any other cut leaves a number or an id for a body, and only JSON objects are bodies.
    return RequestSignatures(content(message_id, text, body), signatures, timestamp)


def _matches(key: Key, request: RequestSignatures) -> set[str]:
    return matches(key, request.signed, request.signatures)


def _sign(key: Key, body: bytes, event: EventInfo) -> dict[str, str]:
    return sign([key], event.id, event.timestamp, body)


STANDARD = Scheme(
    name="standard",
    headers=("webhook-id", "webhook-timestamp", "webhook-signature"),
    header_format=_FORMAT,
    read_signatures=_read,
    read_key=read_key,
    matches=_matches,
    sign=_sign,
    event_type=("body:type", "body:event_type"),
    idempotency_key=("header:webhook-id",),
    signs_timestamp=True,
    signs_idempotency_key=True,
)
