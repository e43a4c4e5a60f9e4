"""What a browser holds instead of the operators' token: a signed session and its form token. Pure.

A session is `<expiry>.<nonce>.<MAC>`: seconds since 1970 and 128 random bits, signed with a key
derived from a secret that every replica has. So any replica can judge it, nothing is stored
unless somebody logs out (`logouts`), and it ends then, or when its time is over or the secret
changes. Neither it nor a form token tells the secret. The form token is signed over the session,
so a page that cannot read this service's pages has none that fits the cookie its visitor's browser
sends along.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

LIFETIME_S = 12 * 3600
"""Seconds that a session lasts: a working day."""
NONCE_BYTES = 16

_SHAPE = re.compile(r"([0-9]{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Session:
    """A session whose signature and time were found right.

    Attributes:
        text: what the browser sends.
        expires_at: seconds since 1970.
        form_token: what its forms carry.
        digest: names it to those who must not be able to use it.
    """

    text: str
    expires_at: int
    form_token: str
    digest: str


class Sessions:
    """Makes and judges the sessions of one purpose."""

    def __init__(self, secret: str, purpose: str) -> None:
        """Derive the keys. Sessions under another secret or purpose are strangers."""
        self._key = _mac(secret.encode(), f"wds session: {purpose}")
        self._form_key = _mac(secret.encode(), f"wds form: {purpose}")

    def begin(self, now_s: float, nonce: bytes) -> Session:
        """Return a new session; `nonce` is `NONCE_BYTES` of randomness."""
        signed = f"{int(now_s) + LIFETIME_S}.{nonce.hex()}"
        return self._session(f"{signed}.{_mac(self._key, signed).hex()}", int(now_s) + LIFETIME_S)

    def read(self, text: str, now_s: float) -> Session | None:
        """Return the session that `text` is, or None if it is none or its time is over."""
        shape = _SHAPE.fullmatch(text)
        if shape is None:
            return None
        expiry, nonce, mac = shape.groups()
        expected = _mac(self._key, f"{expiry}.{nonce}").hex()
        if not hmac.compare_digest(mac, expected) or int(expiry) <= now_s:
            return None
        return self._session(text, int(expiry))

    def _session(self, text: str, expires_at: int) -> Session:
        digest = hashlib.sha256(text.encode()).hexdigest()
        return Session(text, expires_at, _mac(self._form_key, text).hex(), digest)


def same(given: str, form_token: str) -> bool:
    """Compare a form's token with its session's, in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), form_token.encode())


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), hashlib.sha256)
