"""Where a backlog's first due event was lately, to begin looking there.

What is claimed or settled leaves its entry in the claim index for a minute or more, and a look
from the beginning passes over all of them: after 200,000 settlements for 10 ms. So while a look
finds as many as it wants, the next begins a little before what it found first. Once a second one
begins at the beginning, for what has become due before that: deferred, replayed, inserted late.
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

    def since(self) -> datetime | None:
        """Return the due time from which on to look; None for the beginning."""
        return self._since if monotonic() < self._trusted_until else None

    def saw(self, first: datetime | None, since: datetime | None) -> None:
        """Learn where a backlog begins, by a look from `since` on; None if there is none."""
        self._since = None if first is None else first - MARGIN
        if since is None:
            self._trusted_until = monotonic() + TRUST_S
