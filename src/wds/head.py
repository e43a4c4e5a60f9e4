"""Where a backlog's first due event was lately, to begin looking there.

What is claimed or settled leaves its entry in the claim index for a minute or more, and a look
from the beginning passes over all of them: after 200,000 settlements for some 10 ms. So while a
look finds as many as it wants, the next begins a little before what it found first. Once a second
one begins at the beginning, for what has become due before that: deferred, inserted late, or by a
new primary's clock that lags behind the old one's. Looks must not overlap.
"""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

TRUST_S = 1.0
"""Seconds between two looks from the beginning: the longest that an older event is overlooked."""
MARGIN = timedelta(seconds=1)
"""How far before the last first event a look begins; an insert is mostly confirmed within it."""


class Head:
    """What the looks at one destination's queue have shown."""

    def __init__(self) -> None:
        """Know nothing: the first look begins at the beginning."""
        self._since: datetime | None = None
        self._trusted_until = 0.0
        self._began = 0.0

    def since(self) -> datetime | None:
        """Begin a look: return the due time from which on to look; None for the beginning."""
        self._began = monotonic()
        return self._since if self._began < self._trusted_until else None

    def saw(self, first: datetime | None, since: datetime | None) -> None:
        """Learn where a backlog begins, by a look from `since` on; None if there is none."""
        self._since = None if first is None else first - MARGIN
        if since is None:
            self._trusted_until = self._began + TRUST_S
