"""Slack's signature: HMAC-SHA256 over `v0:SECONDS:body`, in hex behind `v0=`.

Format: https://docs.slack.dev/authentication/verifying-requests-from-slack

Before Slack sends events to a URL it posts `{"type": "url_verification", "challenge": ...}` and
expects the challenge back:
https://docs.slack.dev/reference/events/url_verification

Slash commands and interactions come as forms. Slack shows the answer's body to the user who sent
one, so a form is answered without a body:
https://docs.slack.dev/interactivity/implementing-slash-commands
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wds.domain.errors import Detail, wrong_shape
from wds.signing import hmac_sha256
from wds.signing.scheme import (
    Answer,
    RequestSignatures,
    Scheme,
    invalid_signature,
    read_timestamp,
    required_header,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multidict import MultiMapping

    from wds.signing.scheme import EventInfo, Key

MAX_CHALLENGE = 512

_FORMAT = "must be v0= and the hex HMAC-SHA256 of v0:SECONDS:body"


def _read(headers: MultiMapping[str], body: bytes) -> RequestSignatures:
    version, _, digits = required_header(headers, "X-Slack-Signature").partition("=")
    text = required_header(headers, "X-Slack-Request-Timestamp")
    timestamp = read_timestamp(text, _FORMAT)
    if version != "v0" or not hmac_sha256.HEX.fullmatch(digits):
        raise invalid_signature(_FORMAT)
    return RequestSignatures(b"v0:%s:%s" % (text.encode(), body), (digits,), timestamp)


def _sign(key: Key, body: bytes, event: EventInfo) -> dict[str, str]:
    digits = hmac_sha256.sign_hex(key, b"v0:%d:%s" % (event.timestamp, body))
    return {
        "X-Slack-Request-Timestamp": str(event.timestamp),
        "X-Slack-Signature": f"v0={digits}",
    }


def _answer_challenge(fields: Mapping[str, Any]) -> Answer | None:
    if fields.get("type") != "url_verification":
        return None
    challenge = fields.get("challenge")
    if not (
        isinstance(challenge, str) and len(challenge) <= MAX_CHALLENGE and challenge.isprintable()
    ):
        text = f"must be a string of at most {MAX_CHALLENGE} printable characters"
        raise wrong_shape(Detail("challenge", text))
    return Answer(200, {"challenge": challenge})


SLACK = Scheme(
    name="slack",
    headers=("X-Slack-Signature", "X-Slack-Request-Timestamp"),
    header_format=_FORMAT,
    read_signatures=_read,
    matches=hmac_sha256.matches_hex,
    sign=_sign,
    event_type=("body:event.type", "body:type", "body:command"),
    idempotency_key=("body:event_id", "signature"),
    signs_timestamp=True,
    signs_idempotency_key=True,
    accepts_forms=True,
    handshake_fields=("type", "challenge"),
    handshake=_answer_challenge,
    answer_to_form=Answer(200, None),
)
