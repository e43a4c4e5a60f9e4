"""Events: a new event, the receipt for its sender, and its id. Pure: no I/O, no clock.

Types that are created once per event are `msgspec.Struct`s: a frozen dataclass takes six to twelve
times as long to create.
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
"""Maximum length of an event type or an idempotency key, characters."""

MAX_BATCH = 1000
"""Maximum number of events in one batch request."""


class NewEvent(Struct, frozen=True):
    """A verified event that is not yet stored. None of these fields ever changes.

    Attributes:
        trace: the request's `traceparent` and, if it has one, `tracestate`; None without tracing.
    """

    id: str
    source: str
    payload: bytes
    content_type: str
    event_type: str | None = None
    idempotency_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    destination: str = destinations.DEFAULT_DESTINATION
    trace: Mapping[str, str] | None = None

    @property
    def payload_sha256(self) -> bytes:
        """Return the 32-byte hash. It differs if another payload arrives under the same key."""
        return hashlib.sha256(self.payload).digest()


class Receipt(Struct, frozen=True):
    """An event is durable: majority-committed and journaled.

    Attributes:
        id: the id of the event; a repeat has the id of the first request's event.
        status: its status when the receipt was written.
        duplicate: True if an earlier request stored the event.
    """

    id: str
    status: Status
    duplicate: bool


class Conflict(Struct, frozen=True):
    """The idempotency key already belongs to another payload; nothing was stored.

    Attributes:
        id: the event that has the key.
        status: the status of that event when the conflict was found.
    """

    id: str
    status: Status


def is_label(value: object) -> bool:
    """Tell whether `value` can be a type or a key: 1 to `MAX_LABEL` printable characters."""
    return isinstance(value, str) and 0 < len(value) <= MAX_LABEL and value.isprintable()


def derived_id(source: str, idempotency_key: str) -> str:
    """Return the id of the event with this key from this source.

    It is the first 128 bits of SHA-256 over the length-prefixed pair. The length keeps two pairs
    from sharing an encoding, so the primary key is the uniqueness constraint.
    """
    name = source.encode()
    digest = hashlib.sha256(b"%d:%s:%s" % (len(name), name, idempotency_key.encode()))
    return digest.hexdigest()[:ID_LENGTH]


def random_id(now: datetime, entropy: bytes) -> str:
    """Return an id that sorts by time: 48 bits of milliseconds, then 80 bits of `entropy`."""
    return f"{int(now.timestamp() * 1000):012x}{entropy[:10].hex()}"
