"""Destinations: the receivers of events, and how each one is to be treated. Pure.

The settings of the process give the values of the one that exists: `Settings.default_destination`
in `config.py`.
"""

from __future__ import annotations

from msgspec import Struct

DEFAULT_DESTINATION = "default"
"""The name of the destination that `WDS_DOWNSTREAM_URL` describes."""


class Destination(Struct, frozen=True, kw_only=True):
    """A receiver of events. Built once when a process starts, and never changed.

    Attributes:
        name: stored with each event, part of the Redis key of the rate limit.
        url: where requests are sent. May contain a secret, so it is not part of the `repr`.
        secrets: texts of the signing keys of Standard Webhooks (`whsec_...`, `whsk_...`). Each
            request carries one signature for each key; empty sends unsigned requests. Not part
            of the `repr`.
        rate_limit: requests allowed in any one second, over all dispatchers; 0 for no limit.
        backoff: seconds to wait after each failure in turn; the last one repeats.
        max_attempts: attempts before an event fails permanently, counted from its last replay.
        timeout_s: seconds that connecting, sending and receiving the answer may take together.
            Waiting for a slot of the rate limit does not count.
        max_in_flight: requests that one dispatcher has under way at a time. As many again may
            wait for their result to be recorded.
    """

    name: str
    url: str
    secrets: tuple[str, ...] = ()
    rate_limit: int = 0
    backoff: tuple[float, ...]
    max_attempts: int
    timeout_s: float
    max_in_flight: int

    def __repr__(self) -> str:
        """Return the name alone: the URL and the keys are secrets."""
        return f"Destination({self.name!r})"
