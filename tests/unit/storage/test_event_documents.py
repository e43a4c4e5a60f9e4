"""The stored event: what is inserted, and that `EventDocument` names each field and no other."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.support import new_event
from wds.domain.deliveries import Attempt, Claim, Outcome, Settlement, Status
from wds.domain.operator_actions import Action, Instruction
from wds.storage import action_queries, lease_queries
from wds.storage.event_documents import (
    AttemptDocument,
    BuriedDocument,
    EventDocument,
    HistoryDocument,
    LeaseDocument,
    attempt_document,
    event_document,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CLAIM = Claim("e", "t", 1, NOW, 0.0, 0.0, "default", None, "a/b", b"{}")
TRACE = {"traceparent": "00-a-b-01"}


def attempt_with(outcome: Outcome) -> Attempt:
    return Attempt(1, NOW, outcome, 500, 12, "HTTP 500", "HTTP 500")


def test_event_document_is_due_when_received():
    document = event_document(new_event(b'{"a":1}'), NOW)
    assert document["received_at"] == document["next_attempt_at"] == NOW
    assert (document["status"], document["attempt_count"]) == (Status.RECEIVED, 0)
    assert document["attempts"] == [] and "lease" not in document
    assert document["payload"] == b'{"a":1}'


def test_event_document_has_an_idempotency_key_only_if_there_is_one():
    assert "idempotency_key" not in event_document(new_event(), NOW)
    assert event_document(new_event(key="k"), NOW)["idempotency_key"] == "k"


@pytest.mark.parametrize("outcome", Outcome)
def test_attempt_document_success_follows_the_outcome(outcome):
    document = attempt_document(attempt_with(outcome))
    assert document["success"] is (outcome is Outcome.SUCCESS)
    assert document["outcome"] == outcome


def fields_set_by(pipeline):
    [stage] = pipeline
    return stage["$set"]


def test_event_document_names_exactly_the_fields_that_are_written():
    claim = fields_set_by(lease_queries.claim("t", "o", 1, 5))
    ends = [
        Settlement(CLAIM, None),
        Settlement(CLAIM, attempt_with(Outcome.FAILURE), Status.DELIVERING),
        Settlement(CLAIM, attempt_with(Outcome.SUCCESS), Status.DELIVERED),
    ]
    instructions = [Instruction(action, "r", "ann", "127.0.0.1") for action in Action]
    written = [
        event_document(new_event(key="k", trace=TRACE), NOW),
        claim,
        *(fields_set_by(write._doc) for write in lease_queries.settlement_writes(ends)),
        *(fields_set_by(action_queries.update(each)) for each in instructions),
    ]
    assert {field for each in written for field in each} == set(EventDocument.__annotations__)


def test_embedded_documents_name_exactly_the_fields_that_are_written():
    claim = fields_set_by(lease_queries.claim("t", "o", 1, 5))
    _, buried, _ = claim["buried"]["$cond"]
    _, _, lease = claim["lease"]["$cond"]
    replay = action_queries.update(Instruction(Action.REPLAY, "r", "ann", "127.0.0.1"))
    _, [entry] = fields_set_by(replay)["history"]["$concatArrays"]
    written = {
        AttemptDocument: attempt_document(attempt_with(Outcome.SUCCESS)),
        BuriedDocument: buried,
        LeaseDocument: lease,
        HistoryDocument: entry,
    }
    for kind, document in written.items():
        assert set(document) == set(kind.__annotations__), kind
