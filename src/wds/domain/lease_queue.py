"""The contract of the lease queue: a dispatcher uses nothing else of the storage.

`storage.lease_queue.MongoLeaseQueue` implements it and explains how. Pure: no I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wds.domain.deliveries import Claimed, Settlement


BACKLOG_CAP = 100_000
"""Maximum of `Backlog.due`, so that a huge backlog does not slow its own metric."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """The events that are due now.

    Attributes:
        due: their number; `BACKLOG_CAP` stands for that number or more.
        oldest_due_s: seconds since the oldest of them became due; 0 if none is due.
    """

    due: int
    oldest_due_s: float


class LeaseQueue(Protocol):
    """Lease due events, one live lease per event, and record how each lease is settled.

    What holds for every method:

    * **Clock.** Due times, lease starts and lease expiries are set and compared by the database's
      clock. The clock of a replica decides nothing about an event.
    * **Durability.** A change that a method confirms is on a majority of the database's members
      and journaled. No failover undoes it.
    * **Retries.** Calls to the database are repeated on transport errors. A retry of a *delivery*
      is not the queue's decision: it is the due time that the caller settles with.
    * **Cancellation.** A cancelled call ends as cancelled. Its write may have taken effect, as
      after a lost answer.
    * **Sharing.** One queue may be used by many tasks at once, and many replicas share the events.
    """

    async def claim(
        self, destination: str, limit: int, *, owner: str, lease_s: float, max_attempts: int
    ) -> Claimed:
        """Lease up to `limit` due events of `destination`; return at once if none is due.

        Guarantees:

        * At most one live lease exists per event, however many replicas claim at the same time.
        * A claim that takes over an expired lease records the attempt of that lease as `unknown`
          in the same write.
        * An event that has had `max_attempts` attempts since it was received or replayed, or that
          was cancelled while it was leased, gets no lease. The claim buries it: in the same write
          it becomes FAILED_PERMANENTLY.
        * `Claim.trusted_until` is earlier than the expiry of the lease.
        * If the answer to the write is lost, the claim reads back which leases it holds. A lease
          that this process never learns of expires, and a later claim finds the event.

        With a `limit` of 1, events come in due order. With more, they are a random sample of the
        events that have been due longest, so that replicas do not compete for the same ones.

        Args:
            destination: claim only events of this destination.
            limit: the maximum number of leases, at least 1.
            owner: the name of this replica, stored with the lease.
            lease_s: seconds until the lease expires.
            max_attempts: the attempts that an event gets.

        Raises:
            StoreUnavailableError: the database did not answer. Leases may exist that expire.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement | None]:
        """Settle claims: record each attempt and release the lease, in one write per event.

        A settlement does one of three things to its event:

        * **Defer** (no attempt): undo the claim. The event is due as before, the attempt is not
          counted, and its number is used again.
        * **Retry** (DELIVERING): record the attempt; the event is due again `delay_s` seconds after
          the write. If an operator has cancelled the event meanwhile, the attempt is recorded and
          the event becomes FAILED_PERMANENTLY instead.
        * **Finish** (DELIVERED or FAILED_PERMANENTLY): record the attempt; the event is final.

        Guarantees:

        * The write matches the lease token. A replica that overran its lease changes nothing and
          cannot overwrite the result of the newer holder.
        * An attempt is recorded once, even if the answer is lost and the write is repeated.
        * One settlement that the database refuses does not keep the others from being recorded.

        Returns:
            One result for each settlement, in order: the settlement that was written, which
            differs from the argument only for a cancelled event; or None if the lease was lost
            before the attempt was recorded. A deferral is always returned unchanged.

        Raises:
            StoreUnavailableError: no confirmation before the latest `Claim.trusted_until` of
                `settlements`. An attempt that was not recorded becomes `unknown` when its lease is
                found expired.
        """
        ...

    async def wait_for_change(self, destination: str, max_s: float) -> bool:
        """Block until an event of `destination` may have become due, for up to `max_s` seconds.

        A hint, never the source of truth: the caller claims after each wait, also after False.
        The wait ends when an event is inserted, retried, replayed or deferred, and when the
        earliest due time of the live events arrives. It may end although nothing is due, and it
        may miss a change.

        Events that became due before the first wait are not reported. The first wait therefore
        returns at once, and so does the first after a pause in waiting: the caller claims, then
        waits again.

        Returns:
            True if it waited or has just begun to listen. False, at once, if this database cannot
            notify at present: the caller polls at its own interval.
        """
        ...

    async def backlog(self, destination: str) -> Backlog:
        """Count the events that are due now. A large count may be some seconds old.

        Raises:
            StoreUnavailableError: the database did not answer.
        """
        ...
