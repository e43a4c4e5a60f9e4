"""GitHub's signature: HMAC-SHA256 over the body alone, in hex behind `sha256=`.

Format: https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds.domain.errors import Refusal
from wds.signing import hmac_sha256
from wds.signing.scheme import RequestSignatures, Scheme

if TYPE_CHECKING:
    from collections.abc import Callable

    from multidict import MultiMapping

    from wds.signing.scheme import EventInfo, Key


def read_prefixed(*names: str) -> Callable[[MultiMapping[str], bytes], RequestSignatures]:
    """Return a reader of prefixed signatures over the body alone, from every header in `names`."""

    def read(headers: MultiMapping[str], body: bytes) -> RequestSignatures:
        signatures = tuple(value for name in names for value in headers.getall(name, []))
        if not signatures:
            raise Refusal(401, "missing_signature", f"no {' or '.join(names)} header")
        return RequestSignatures(body, signatures)

    return read


def _sign(key: Key, body: bytes, event: EventInfo) -> dict[str, str]:
    return {
        "X-Hub-Signature-256": hmac_sha256.sign_prefixed(key, body),
        "X-GitHub-Event": event.event_type or "ping",
        "X-GitHub-Delivery": event.id,
    }


GITHUB = Scheme(
    name="github",
    headers=("X-Hub-Signature-256",),
    header_format=hmac_sha256.PREFIXED_FORMAT,
    read_signatures=read_prefixed("X-Hub-Signature-256"),
    matches=hmac_sha256.matches_prefixed,
    sign=_sign,
    event_type=("header:X-GitHub-Event",),
    idempotency_key=("header:X-GitHub-Delivery",),
    all_must_match=True,
    accepts_forms=True,
)
