"""The result of a claim: which events it leased and which it buried, and why. Pure.

`lease_queries.claim` is the write that decides it and stores the reason in `buried`. An event that
was cancelled and had no attempt left either counts as exhausted, not as cancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds.domain.deliveries import Claim, Claimed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wds.storage.event_documents import EventDocument


def claim_result(
    documents: Sequence[EventDocument],
    token: str,
    *,
    held_since: float,
    trusted_until: float,
    others_were_first: bool,
    buried_unread: int = 0,
) -> Claimed:
    """Sort the documents that a claim wrote to into leased, exhausted and cancelled ones.

    Args:
        documents: as the claim left them, each with either `lease` or `buried`.
        token: the claim's.
        held_since: see `Claim`.
        trusted_until: see `Claim`.
        others_were_first: see `Claimed`.
        buried_unread: see `Claimed`.
    """
    leased = [each for each in documents if "lease" in each]
    exhausted: list[str] = []
    cancelled: list[str] = []
    lost: list[str] = []
    for each in documents:
        if "lease" not in each:
            buried = each["buried"]
            (cancelled if buried["cancelled"] else exhausted).append(each["_id"])
            if buried["lost"]:
                lost.append(each["_id"])
    claims = [_claim(each, token, held_since, trusted_until) for each in leased]
    return Claimed(
        claims=claims,
        recovered=sum(claim.recovered for claim in claims),
        exhausted_ids=exhausted,
        cancelled_ids=cancelled,
        lost_ids=lost,
        others_were_first=others_were_first,
        buried_unread=buried_unread,
    )


def _claim(document: EventDocument, token: str, held_since: float, trusted_until: float) -> Claim:
    lease = document["lease"]
    return Claim(
        id=document["_id"],
        token=token,
        attempt_number=document["attempt_count"],
        leased_at=lease["since"],
        held_since=held_since,
        trusted_until=trusted_until,
        destination=document["destination"],
        event_type=document["event_type"],
        content_type=document["content_type"],
        payload=document["payload"],
        waited_s=(lease["since"] - lease["due_at"]).total_seconds(),
        recovered="recovered" in lease,
        trace=document.get("trace"),
        attempts_before=document.get("attempts_before", 0),
    )
