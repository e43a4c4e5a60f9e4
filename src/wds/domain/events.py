"""Events: what a sender sent, once; what it is told; how it is named. Pure: no I/O, no clock.

What is made anew for each event is a `msgspec.Struct`; a frozen dataclass takes six to twelve times
as long.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from msgspec import Struct, field

from wds.domain import destinations

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from wds.domain.deliveries import Status

ID_LENGTH = 32
"""Characters of an event id: 128 bits in lower-case hex."""

MAX_LABEL = 255
"""Most characters of an event type or an idempotency key."""

MAX_BATCH = 1000
"""Most events in one batch request."""


class NewEvent(Struct, frozen=True):
    """An event that was verified and not yet stored. Never changed after that."""

    id: str
    source: str
    payload: bytes
    content_type: str
    event_type: str | None = None
    idempotency_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    destination: str = destinations.DEFAULT
    trace: Mapping[str, str] | None = None
    """`traceparent` and perhaps `tracestate` of whoever sent it, while tracing is on."""

    @property
    def payload_sha256(self) -> bytes:
        """32 bytes; tells a repeat from another payload under the same idempotency key."""
        return hashlib.sha256(self.payload).digest()


class Receipt(Struct, frozen=True):
    """An event is durable: majority-committed and journaled.

    Attributes:
        id: the event's id; of the first one, when this is a repeat.
        status: its status when the answer was made.
        duplicate: True if an earlier request stored it.
    """

    id: str
    status: Status
    duplicate: bool


class Conflict(Struct, frozen=True):
    """The idempotency key already belongs to another payload; nothing was stored.

    Attributes:
        id: the event that has the key.
        status: its status when the answer was made.
    """

    id: str
    status: Status


def is_label(value: object) -> bool:
    """Tell whether `value` can name a type or a key: a short, printable, non-empty string."""
    return isinstance(value, str) and 0 < len(value) <= MAX_LABEL and value.isprintable()


def derived_id(source: str, idempotency_key: str) -> str:
    """Return the id that every event with this key from this source has.

    The first 128 bits of SHA-256 over the length-prefixed pair, so that no two pairs share
    an encoding and the primary key is the uniqueness constraint.
    """
    name = source.encode()
    digest = hashlib.sha256(b"%d:%s:%s" % (len(name), name, idempotency_key.encode()))
    return digest.hexdigest()[:ID_LENGTH]


def random_id(now: datetime, entropy: bytes) -> str:
    """Return an id that sorts by time: 48 bits of milliseconds, then 80 bits of `entropy`."""
    return f"{int(now.timestamp() * 1000):012x}{entropy[:10].hex()}"
