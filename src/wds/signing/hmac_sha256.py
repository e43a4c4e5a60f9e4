"""HMAC-SHA256 over the raw body, as GitHub and our own senders compute it. Pure.

Format: `sha256=` and 64 lower-case hex digits
(https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries). Only that
spelling counts: a signature with one changed bit is another signature.
"""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_FORMAT = re.compile(r"sha256=([0-9a-f]{64})")


def sign(secret: str | bytes, body: bytes) -> str:
    """Return the header value that `verify` accepts for `body` under `secret`."""
    key = secret.encode() if isinstance(secret, str) else secret
    return "sha256=" + hmac.digest(key, body, "sha256").hex()


def verify(secrets: Iterable[str | bytes], body: bytes, signature: str) -> bool:
    """Tell whether `signature` is one of `secrets`' over `body`.

    Every secret is tried, whichever matches, and compared in constant time.
    """
    if not _FORMAT.fullmatch(signature):
        return False
    valid = False
    for secret in secrets:
        valid |= hmac.compare_digest(sign(secret, body), signature)
    return valid
