"""How senders sign: one scheme for each kind of sender, for verifying and for signing. Pure.

Keys, headers, bytes and the time come in; a `Proof` or a `Refusal` comes out. What is verified is
always the raw body. Signatures are compared as text, in the one spelling that their sender
writes, so that a changed bit is another signature even where base64 would ignore it.

Formats, as their owners publish them:
    github    https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries
    stripe    https://docs.stripe.com/webhooks#verify-manually
    shopify   https://shopify.dev/docs/apps/build/webhooks/subscribe/https
    slack     https://docs.slack.dev/authentication/verifying-requests-from-slack
    standard  see the module of that name
"""

from __future__ import annotations

import base64
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import Struct

from wds.domain.errors import Refusal
from wds.signing import hmac_sha256, standard_webhooks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from multidict import MultiMapping

    from wds.signing.standard_webhooks import Key

TOLERANCE_S = 300
"""How far from now a signed timestamp may be, before or after: what every provider advises."""
MAX_SIGNATURES = 16
"""Most signatures in one request; each is compared with every secret."""

_HEX = re.compile(r"[0-9a-f]{64}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_SECONDS = re.compile(r"[0-9]{1,12}")


class Given(Struct, frozen=True):
    """What a request shows.

    Attributes:
        signed: the bytes that its sender signed.
        signatures: ASCII, at most `MAX_SIGNATURES`.
        timestamp: Unix seconds; None where the scheme has none.
    """

    signed: bytes
    signatures: tuple[str, ...]
    timestamp: int | None = None


class Proof(Struct, frozen=True):
    """A request is genuine.

    Attributes:
        secret: index of the first secret that verifies it.
        signature: one that is valid; the same request repeated has the same.
    """

    secret: int
    signature: str


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a sender puts beside a body: its id, its type, and when it sends (Unix seconds)."""

    id: str
    event_type: str | None
    now: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way to sign.

    Attributes:
        headers: the headers that carry the signature.
        form: what they hold, for people.
        read: collects what a request shows.
        matches: which of the signatures shown are a key's, compared in constant time.
        sign: the headers that a sender adds; ValueError for a key that cannot sign.
        event_type, idempotency_key: where these are, in order; see `sources.Place`.
        key: reads a secret; ValueError says what it must be.
        every: each signature shown must be valid, not only one.
        timed: the signature covers a timestamp.
        vouches: it covers the idempotency key too, so that it is the sender itself who says
            that two bodies are one event.
        forms: bodies may be `application/x-www-form-urlencoded`.
    """

    name: str
    headers: tuple[str, ...]
    form: str
    read: Callable[[MultiMapping[str], bytes], Given]
    matches: Callable[[Key, Given], set[str]]
    sign: Callable[[Key, bytes, Stamp], Mapping[str, str]]
    event_type: tuple[str, ...]
    idempotency_key: tuple[str, ...]
    key: Callable[[str], Key] = str.encode
    every: bool = False
    timed: bool = False
    vouches: bool = False
    forms: bool = False


def verify(
    scheme: Scheme,
    keys: Sequence[Key],
    headers: MultiMapping[str],
    body: bytes,
    *,
    now: float,
    tolerance_s: float = TOLERANCE_S,
) -> Proof:
    """Return which of `keys` signed `body`. All are tried, whichever matches.

    `headers` compares names without regard to case; `now` is in Unix seconds.

    Raises:
        Refusal: 401 without a signature, with one that no key made, or with a timestamp further
            than `tolerance_s` from now in either direction; 400 for a header given twice.
    """
    given = scheme.read(headers, body)
    if len(given.signatures) > MAX_SIGNATURES:
        raise _invalid(scheme.form)
    matched: set[str] = set()
    first: int | None = None
    for index, key in enumerate(keys):
        hits = scheme.matches(key, given)
        if hits and first is None:
            first = index
        matched |= hits
    if first is None or (scheme.every and matched != set(given.signatures)):
        raise _invalid(scheme.form)
    if given.timestamp is not None and abs(now - given.timestamp) > tolerance_s:
        text = f"signed more than {tolerance_s:g} s before or after now"
        raise Refusal(401, "timestamp_out_of_tolerance", text)
    return Proof(first, next(each for each in given.signatures if each in matched))


def only(headers: MultiMapping[str], name: str) -> str | None:
    """Return the value of a header that may be given once.

    Raises:
        Refusal: 400 if it is given more than once: which one counts would be a guess.
    """
    values = headers.getall(name, [])
    if len(values) > 1:
        raise Refusal(400, "repeated_header", f"{name} must be given once")
    return values[0] if values else None


# -- reading ---------------------------------------------------------------------------------


def _required(headers: MultiMapping[str], name: str) -> str:
    value = only(headers, name)
    if value is None:
        raise Refusal(401, "missing_signature", f"no {name} header")
    return value


def _invalid(form: str) -> Refusal:
    return Refusal(401, "invalid_signature", form)


def _timestamp(text: str, form: str) -> int:
    if not _SECONDS.fullmatch(text):
        raise _invalid(form)
    return int(text)


def _prefixed(*names: str) -> Callable[[MultiMapping[str], bytes], Given]:
    """Read signatures over the body alone, from whichever of `names` there are."""

    def read(headers: MultiMapping[str], body: bytes) -> Given:
        found = tuple(value for name in names for value in headers.getall(name, []))
        if not found:
            raise Refusal(401, "missing_signature", f"no {' or '.join(names)} header")
        return Given(body, found)

    return read


def _read_shopify(headers: MultiMapping[str], body: bytes) -> Given:
    value = _required(headers, "X-Shopify-Hmac-SHA256")
    if not _BASE64.fullmatch(value):
        raise _invalid(_SHOPIFY_FORM)
    return Given(body, (value,))


def _read_stripe(headers: MultiMapping[str], body: bytes) -> Given:
    pairs = [part.partition("=") for part in _required(headers, "Stripe-Signature").split(",")]
    times = [value for name, _, value in pairs if name == "t"]
    found = tuple(value for name, _, value in pairs if name == "v1")
    if len(times) != 1 or not all(map(_HEX.fullmatch, found)):
        raise _invalid(_STRIPE_FORM)
    timestamp = _timestamp(times[0], _STRIPE_FORM)
    return Given(b"%s.%s" % (times[0].encode(), body), found, timestamp)


def _read_slack(headers: MultiMapping[str], body: bytes) -> Given:
    version, _, digits = _required(headers, "X-Slack-Signature").partition("=")
    text = _required(headers, "X-Slack-Request-Timestamp")
    timestamp = _timestamp(text, _SLACK_FORM)
    if version != "v0" or not _HEX.fullmatch(digits):
        raise _invalid(_SLACK_FORM)
    return Given(b"v0:%s:%s" % (text.encode(), body), (digits,), timestamp)


def _read_standard(headers: MultiMapping[str], body: bytes) -> Given:
    message_id = _required(headers, "webhook-id")
    text = _required(headers, "webhook-timestamp")
    found = tuple(_required(headers, "webhook-signature").split(" "))
    timestamp = _timestamp(text, _STANDARD_FORM)
    if not all(map(str.isascii, found)):
        raise _invalid(_STANDARD_FORM)
    # An id may hold full stops. Moving the boundaries gains nothing: behind any other one there
    # is a number or an id, and only JSON objects are taken for bodies.
    return Given(standard_webhooks.content(message_id, text, body), found, timestamp)


# -- comparing and signing -----------------------------------------------------------------------


def _secret(key: Key) -> bytes:
    if not isinstance(key, bytes):
        msg = "an ed25519 key where a secret is needed"
        raise TypeError(msg)
    return key


def _mac(key: Key, signed: bytes) -> bytes:
    return hmac.digest(_secret(key), signed, "sha256")


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _same(expected: str, given: Given) -> set[str]:
    return {each for each in given.signatures if hmac.compare_digest(expected, each)}


def _matches_prefixed(key: Key, given: Given) -> set[str]:
    expected = hmac_sha256.sign(_secret(key), given.signed)
    return {
        each for each in given.signatures if each.isascii() and hmac.compare_digest(expected, each)
    }


def _matches_hex(key: Key, given: Given) -> set[str]:
    return _same(_mac(key, given.signed).hex(), given)


def _matches_base64(key: Key, given: Given) -> set[str]:
    return _same(_base64(_mac(key, given.signed)), given)


def _matches_standard(key: Key, given: Given) -> set[str]:
    return standard_webhooks.matches(key, given.signed, given.signatures)


def _sign_wds(key: Key, body: bytes, stamp: Stamp) -> dict[str, str]:
    headers = {
        "X-Webhook-Signature": hmac_sha256.sign(_secret(key), body),
        "Idempotency-Key": stamp.id,
    }
    if stamp.event_type is not None:
        headers["X-Event-Type"] = stamp.event_type
    return headers


def _sign_github(key: Key, body: bytes, stamp: Stamp) -> dict[str, str]:
    return {
        "X-Hub-Signature-256": hmac_sha256.sign(_secret(key), body),
        "X-GitHub-Event": stamp.event_type or "ping",
        "X-GitHub-Delivery": stamp.id,
    }


def _sign_shopify(key: Key, body: bytes, stamp: Stamp) -> dict[str, str]:
    return {
        "X-Shopify-Hmac-SHA256": _base64(_mac(key, body)),
        "X-Shopify-Topic": stamp.event_type or "app/uninstalled",
        "X-Shopify-Webhook-Id": stamp.id,
    }


def _sign_stripe(key: Key, body: bytes, stamp: Stamp) -> dict[str, str]:
    digits = _mac(key, b"%d.%s" % (stamp.now, body)).hex()
    return {"Stripe-Signature": f"t={stamp.now},v1={digits}"}


def _sign_slack(key: Key, body: bytes, stamp: Stamp) -> dict[str, str]:
    digits = _mac(key, b"v0:%d:%s" % (stamp.now, body)).hex()
    return {"X-Slack-Request-Timestamp": str(stamp.now), "X-Slack-Signature": f"v0={digits}"}


def _sign_standard(key: Key, body: bytes, stamp: Stamp) -> dict[str, str]:
    return standard_webhooks.sign([key], stamp.id, stamp.now, body)


# -- the schemes -------------------------------------------------------------------------------

_PREFIXED_FORM = "must be sha256= and the hex HMAC-SHA256 of the raw body"
_SHOPIFY_FORM = "must be the base64 HMAC-SHA256 of the raw body"
_STRIPE_FORM = "must be t=SECONDS,v1= and the hex HMAC-SHA256 of SECONDS.body"
_SLACK_FORM = "must be v0= and the hex HMAC-SHA256 of v0:SECONDS:body"
_STANDARD_FORM = (
    "must be v1, and the base64 HMAC-SHA256 of id.SECONDS.body,"
    " or v1a, and its base64 ed25519 signature; several are separated by spaces"
)

WDS = Scheme(
    name="wds",
    headers=("X-Webhook-Signature", "X-Hub-Signature-256"),
    form=_PREFIXED_FORM,
    read=_prefixed("X-Webhook-Signature", "X-Hub-Signature-256"),
    matches=_matches_prefixed,
    sign=_sign_wds,
    event_type=("body:event_type", "body:type", "header:X-Event-Type", "header:X-GitHub-Event"),
    idempotency_key=("body:idempotency_key", "header:Idempotency-Key"),
    every=True,
)
_GITHUB = Scheme(
    name="github",
    headers=("X-Hub-Signature-256",),
    form=_PREFIXED_FORM,
    read=_prefixed("X-Hub-Signature-256"),
    matches=_matches_prefixed,
    sign=_sign_github,
    event_type=("header:X-GitHub-Event",),
    idempotency_key=("header:X-GitHub-Delivery",),
    every=True,
    forms=True,
)
_STRIPE = Scheme(
    name="stripe",
    headers=("Stripe-Signature",),
    form=_STRIPE_FORM,
    read=_read_stripe,
    matches=_matches_hex,
    sign=_sign_stripe,
    event_type=("body:type",),
    idempotency_key=("body:id", "signature"),
    timed=True,
    vouches=True,
)
_SHOPIFY = Scheme(
    name="shopify",
    headers=("X-Shopify-Hmac-SHA256",),
    form=_SHOPIFY_FORM,
    read=_read_shopify,
    matches=_matches_base64,
    sign=_sign_shopify,
    event_type=("header:X-Shopify-Topic",),
    idempotency_key=("header:X-Shopify-Webhook-Id",),
)
SLACK = Scheme(
    name="slack",
    headers=("X-Slack-Signature", "X-Slack-Request-Timestamp"),
    form=_SLACK_FORM,
    read=_read_slack,
    matches=_matches_hex,
    sign=_sign_slack,
    event_type=("body:event.type", "body:type", "body:command"),
    idempotency_key=("body:event_id", "signature"),
    timed=True,
    vouches=True,
    forms=True,
)
_STANDARD = Scheme(
    name="standard",
    headers=("webhook-id", "webhook-timestamp", "webhook-signature"),
    form=_STANDARD_FORM,
    read=_read_standard,
    key=standard_webhooks.read_key,
    matches=_matches_standard,
    sign=_sign_standard,
    event_type=("body:type", "body:event_type"),
    idempotency_key=("header:webhook-id",),
    timed=True,
    vouches=True,
)

SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme for scheme in (WDS, _GITHUB, _STRIPE, _SHOPIFY, SLACK, _STANDARD)
}
