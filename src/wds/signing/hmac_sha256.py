"""HMAC-SHA256, and the three spellings of it that providers put into headers.

    prefixed   `sha256=` and 64 lower-case hex digits (GitHub, and senders of wds's own scheme)
    hex        64 lower-case hex digits
    base64     44 characters of standard base64, padding included (Shopify)

Only the exact spelling is valid: a signature with one changed bit is another signature.

A provider's `Scheme` uses `sign_*` and `matches_*`, one pair for each spelling. `sign` and `verify`
are for code without a `Scheme`: they use the prefixed spelling and plain secrets.
"""

from __future__ import annotations

import base64
import hmac
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wds.signing.scheme import Key, RequestSignatures

HEX = re.compile(r"[0-9a-f]{64}")
BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
"""The alphabet of base64, of any length. `matches_base64` compares the exact text."""
PREFIXED_FORMAT = "must be sha256= and the hex HMAC-SHA256 of the raw body"

_PREFIXED = re.compile(r"sha256=([0-9a-f]{64})")


def sign(secret: str | bytes, body: bytes) -> str:
    """Return the prefixed signature that `verify` accepts for `body` under `secret`."""
    key = secret.encode() if isinstance(secret, str) else secret
    return "sha256=" + hmac.digest(key, body, "sha256").hex()


def verify(secrets: Iterable[str | bytes], body: bytes, signature: str) -> bool:
    """Tell whether `signature`, prefixed, was made over `body` with one of `secrets`.

    Every secret is tried, even after one has matched, and compared in constant time.
    """
    if not _PREFIXED.fullmatch(signature):
        return False
    valid = False
    for secret in secrets:
        valid |= hmac.compare_digest(sign(secret, body), signature)
    return valid


def sign_prefixed(key: Key, signed: bytes) -> str:
    """Return the prefixed signature of `signed`."""
    return sign(_secret(key), signed)


def sign_hex(key: Key, signed: bytes) -> str:
    """Return the signature of `signed` in hex."""
    return hmac.digest(_secret(key), signed, "sha256").hex()


def sign_base64(key: Key, signed: bytes) -> str:
    """Return the signature of `signed` in base64."""
    return base64.b64encode(hmac.digest(_secret(key), signed, "sha256")).decode("ascii")


def matches_prefixed(key: Key, request: RequestSignatures) -> set[str]:
    """Return those signatures that `key` made in the prefixed spelling. They may be non-ASCII."""
    expected = sign_prefixed(key, request.signed)
    return {
        each
        for each in request.signatures
        if each.isascii() and hmac.compare_digest(expected, each)
    }


def matches_hex(key: Key, request: RequestSignatures) -> set[str]:
    """Return those signatures that `key` made in hex."""
    return _equal(sign_hex(key, request.signed), request)


def matches_base64(key: Key, request: RequestSignatures) -> set[str]:
    """Return those signatures that `key` made in base64."""
    return _equal(sign_base64(key, request.signed), request)


def _equal(expected: str, request: RequestSignatures) -> set[str]:
    return {each for each in request.signatures if hmac.compare_digest(expected, each)}


def _secret(key: Key) -> bytes:
    if not isinstance(key, bytes):
        msg = "an ed25519 key where a secret is needed"
        raise TypeError(msg)
    return key
