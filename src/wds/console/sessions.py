"""Signed browser sessions and the form tokens that belong to them. Pure.

A browser holds a session instead of the operators' token. A session is `<expiry>.<nonce>.<MAC>`:
seconds since 1970 and 128 random bits, signed with a key derived from a secret that every replica
has. So every replica can verify it, and nothing is stored unless somebody logs out
(`storage.revoked_sessions`). A session ends by logout, when it expires, or when the secret changes.

Neither a session nor a form token reveals the secret. The form token is signed over the session.
A page of another site cannot read this service's pages, so it has no token that fits the cookie
that its visitor's browser sends along.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

LIFETIME_S = 12 * 3600
"""The life of a session: a working day."""
NONCE_BYTES = 16

_SESSION_FORMAT = re.compile(r"([0-9]{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Session:
    """A session whose signature and expiry were verified.

    Attributes:
        text: the cookie's value.
        expires_at: seconds since 1970.
        form_token: what the session's forms carry.
        digest: identifies the session where its text must not be stored.
    """

    text: str
    expires_at: int
    form_token: str
    digest: str


class SessionSigner:
    """Issues and verifies the sessions of one purpose."""

    def __init__(self, secret: str, purpose: str) -> None:
        """Derive the keys. Sessions of another secret or purpose are not accepted."""
        self._key = _mac(secret.encode(), f"wds session: {purpose}")
        self._form_key = _mac(secret.encode(), f"wds form: {purpose}")

    def issue(self, now_s: float, nonce: bytes) -> Session:
        """Return a new session; `nonce` is `NONCE_BYTES` of randomness."""
        signed = f"{int(now_s) + LIFETIME_S}.{nonce.hex()}"
        return self._session(f"{signed}.{_mac(self._key, signed).hex()}", int(now_s) + LIFETIME_S)

    def verify(self, text: str, now_s: float) -> Session | None:
        """Return the session of a cookie's value, or None if it is invalid or has expired."""
        match = _SESSION_FORMAT.fullmatch(text)
        if match is None:
            return None
        expiry, nonce, mac = match.groups()
        expected = _mac(self._key, f"{expiry}.{nonce}").hex()
        if not hmac.compare_digest(mac, expected) or int(expiry) <= now_s:
            return None
        return self._session(text, int(expiry))

    def _session(self, text: str, expires_at: int) -> Session:
        digest = hashlib.sha256(text.encode()).hexdigest()
        return Session(text, expires_at, _mac(self._form_key, text).hex(), digest)


def form_tokens_match(sent: str, expected: str) -> bool:
    """Compare the token that a form sent with that of its session, in constant time."""
    return hmac.compare_digest(sent.encode("utf-8", "surrogatepass"), expected.encode())


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), hashlib.sha256)
