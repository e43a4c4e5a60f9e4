"""Signature schemes: the type `Scheme`, and `verify`, which checks a request against one.

A `Scheme` describes one provider as data and small functions; the providers' files define them
and `registry.py` lists them. Two rules hold for every scheme:

* The raw body is verified, never a parsed or re-encoded one.
* Signatures are compared as text, in the one spelling that the provider writes. A changed bit is
  therefore another signature, even where base64 would ignore it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec import Struct

from wds.domain.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )
    from multidict import MultiMapping

Key: TypeAlias = "bytes | Ed25519PublicKey | Ed25519PrivateKey"
"""A shared secret, or one half of a key pair. A private key also verifies its own signatures."""

TOLERANCE_S = 300
"""Allowed distance of a signed timestamp from now, in both directions: every provider's advice."""
MAX_SIGNATURES = 16
"""Maximum number of signatures in one request; each is compared with every secret."""

_SECONDS = re.compile(r"[0-9]{1,12}")


class RequestSignatures(Struct, frozen=True):
    """The signatures of a request and what they sign, not verified yet.

    Attributes:
        signed: the bytes that the sender signed.
        signatures: ASCII, at most `MAX_SIGNATURES`.
        timestamp: Unix seconds; None where the scheme signs none.
    """

    signed: bytes
    signatures: tuple[str, ...]
    timestamp: int | None = None


class Proof(Struct, frozen=True):
    """Evidence that a request is authentic.

    Attributes:
        secret_index: index of the first of the source's secrets that verifies it.
        signature: a valid signature. The same request sent again carries the same one.
    """

    secret_index: int
    signature: str


class Answer(Struct, frozen=True):
    """An HTTP response to a provider.

    Attributes:
        status: HTTP status.
        body: is sent as JSON; None sends no body.
    """

    status: int
    body: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class EventInfo:
    """An event's id, type and time of sending (Unix seconds), which a sender puts into headers."""

    id: str
    event_type: str | None
    timestamp: int


def no_handshake(_fields: Mapping[str, Any]) -> Answer | None:
    """Treat every request as an event."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How one provider signs.

    Attributes:
        name: what `scheme = "..."` names in `wds.toml`.
        headers: the headers that carry the signature.
        header_format: the format of their values, for people; also the message of a 401.
        read_signatures: collects the signatures of a request. It raises `Refusal`: 401 if they
            are missing or malformed, 400 for a repeated header.
        matches: returns those signatures that one key made, compared in constant time.
        sign: returns the headers that a sender adds. It raises ValueError for a key that cannot
            sign.
        event_type, idempotency_key: where these are, in order of precedence, in the syntax of
            `ingestion.sources.Location`.
        read_key: reads a configured secret; its ValueError says what a secret must look like.
        all_must_match: every signature of a request must be valid, not only one of them.
        signs_timestamp: the signature covers a timestamp.
        signs_idempotency_key: the signature covers the idempotency key. A repeated key then means
            a repeated event, even if the bodies differ, because the sender itself says so.
        accepts_forms: bodies may be `application/x-www-form-urlencoded`.
        handshake_fields: the top-level fields of a body that `handshake` reads.
        handshake: returns the answer to a verified request that sets up the webhook instead
            of carrying an event; it is not stored. None: the request is an event.
        answer_to_form: the answer to a stored event that came as a form. None: its receipt.
    """

    name: str
    headers: tuple[str, ...]
    header_format: str
    read_signatures: Callable[[MultiMapping[str], bytes], RequestSignatures]
    matches: Callable[[Key, RequestSignatures], set[str]]
    sign: Callable[[Key, bytes, EventInfo], Mapping[str, str]]
    event_type: tuple[str, ...]
    idempotency_key: tuple[str, ...]
    read_key: Callable[[str], Key] = str.encode
    all_must_match: bool = False
    signs_timestamp: bool = False
    signs_idempotency_key: bool = False
    accepts_forms: bool = False
    handshake_fields: tuple[str, ...] = ()
    handshake: Callable[[Mapping[str, Any]], Answer | None] = no_handshake
    answer_to_form: Answer | None = None


def verify(
    scheme: Scheme,
    keys: Sequence[Key],
    headers: MultiMapping[str],
    body: bytes,
    *,
    now: float,
    tolerance_s: float = TOLERANCE_S,
) -> Proof:
    """Return which of `keys` signed `body`. Every key is tried, even after one has matched.

    `headers` compares names case-insensitively; `now` is in Unix seconds.

    Raises:
        Refusal: 401 without a signature, with one that no key made, or with a timestamp further
            than `tolerance_s` from now in either direction; 400 for a repeated header.
    """
    request = scheme.read_signatures(headers, body)
    if len(request.signatures) > MAX_SIGNATURES:
        raise invalid_signature(scheme.header_format)
    matched: set[str] = set()
    first: int | None = None
    for index, key in enumerate(keys):
        hits = scheme.matches(key, request)
        if hits and first is None:
            first = index
        matched |= hits
    if first is None or (scheme.all_must_match and matched != set(request.signatures)):
        raise invalid_signature(scheme.header_format)
    if request.timestamp is not None and abs(now - request.timestamp) > tolerance_s:
        text = f"signed more than {tolerance_s:g} s before or after now"
        raise Refusal(401, "timestamp_out_of_tolerance", text)
    return Proof(first, next(each for each in request.signatures if each in matched))


# -- for the providers' files ---------------------------------------------------------------------


def single_header(headers: MultiMapping[str], name: str) -> str | None:
    """Return the value of a header that must not be repeated; None without it.

    Raises:
        Refusal: 400 if it is repeated: choosing one of the values would be a guess.
    """
    values = headers.getall(name, [])
    if len(values) > 1:
        raise Refusal(400, "repeated_header", f"{name} must be given once")
    return values[0] if values else None


def required_header(headers: MultiMapping[str], name: str) -> str:
    """Return the value of a header without which a request has no signature.

    Raises:
        Refusal: 401 without it, 400 if it is repeated.
    """
    value = single_header(headers, name)
    if value is None:
        raise Refusal(401, "missing_signature", f"no {name} header")
    return value


def invalid_signature(header_format: str) -> Refusal:
    """Return the refusal of a request whose signature is malformed or wrong."""
    return Refusal(401, "invalid_signature", header_format)


def read_timestamp(text: str, header_format: str) -> int:
    """Read Unix seconds.

    Raises:
        Refusal: 401 if `text` is not 1 to 12 decimal digits.
    """
    if not _SECONDS.fullmatch(text):
        raise invalid_signature(header_format)
    return int(text)
