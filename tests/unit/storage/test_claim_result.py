"""What a claim makes of the documents that it wrote to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from wds.storage.claim_result import claim_result

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def leased(event_id, **lease):
    return {
        "_id": event_id,
        "attempt_count": 3,
        "attempts_before": 2,
        "destination": "default",
        "event_type": None,
        "content_type": "application/json",
        "payload": b"{}",
        "lease": {"since": NOW, "due_at": NOW - timedelta(seconds=5), **lease},
    }


def buried(event_id, *, cancelled=False, lost=True):
    return {"_id": event_id, "buried": {"by": "t", "cancelled": cancelled, "lost": lost}}


def result_of(*documents, others_were_first=False):
    return claim_result(
        documents, "t", held_since=7.0, trusted_until=9.0, others_were_first=others_were_first
    )


def test_claim_result_sorts_documents_into_leased_exhausted_and_cancelled():
    result = result_of(
        leased("a"),
        buried("b"),
        leased("c", recovered=True),
        buried("d", cancelled=True),
        buried("e", lost=False),
    )
    assert [claim.id for claim in result.claims] == ["a", "c"]
    assert result.exhausted_ids == ["b", "e"]
    assert result.cancelled_ids == ["d"]
    assert (result.recovered, result.others_were_first) == (1, False)


def test_claim_result_builds_each_claim_from_its_document():
    [claim] = result_of(leased("a")).claims
    assert (claim.token, claim.held_since, claim.trusted_until) == ("t", 7.0, 9.0)
    assert (claim.leased_at, claim.waited_s) == (NOW, 5.0)
    assert (claim.attempt_number, claim.schedule_step) == (3, 1)
    assert (claim.recovered, claim.trace) == (False, None)


def test_claim_result_of_no_document_is_empty():
    result = result_of(others_were_first=True)
    assert (result.claims, result.exhausted_ids, result.cancelled_ids) == ([], [], [])
    assert (result.recovered, result.lost_ids, result.others_were_first) == (0, [], True)
