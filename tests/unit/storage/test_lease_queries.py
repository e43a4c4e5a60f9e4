"""The filters and pipelines of the lease queue; the integration tests check what they do."""

from __future__ import annotations

from datetime import UTC, datetime

import bson
import pytest
from msgspec.structs import replace
from pymongo import UpdateMany, UpdateOne

from tests.support import new_event
from wds.domain.deliveries import Attempt, Claim, Outcome, Settlement, Status
from wds.storage import event_documents, indexes, lease_queries, replicas, rollup_queries

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOSTILE = ["$payload", "$$ROOT", "$$NOW", "$", "$$REMOVE", "$a.b", "plain"]


def make_claim(number=1):
    return Claim(
        id=f"e{number}",
        token=f"t{number}",
        attempt_number=number,
        leased_at=NOW,
        held_since=0.0,
        trusted_until=0.0,
        destination="default",
        event_type=None,
        content_type="application/json",
        payload=b"{}",
    )


def make_attempt(outcome=Outcome.FAILURE, text="HTTP 500", number=1):
    return Attempt(
        attempt_number=number,
        timestamp=NOW,
        outcome=outcome,
        status_code=500,
        duration_ms=12,
        error=text,
        response=text,
    )


def retry(delay_s=0.0, text="HTTP 500"):
    return Settlement(make_claim(), make_attempt(text=text), Status.DELIVERING, delay_s)


def final(status, text="HTTP 500"):
    return Settlement(make_claim(), make_attempt(text=text), status)


DEFER = Settlement(make_claim(), None)
CANCELLED = replace(final(Status.FAILED_PERMANENTLY), cancelled=True)


def write(*settlements):
    """Return the filter and the changes of the one write that ends these claims."""
    [update] = lease_queries.settlement_writes(settlements)
    [stage] = update._doc
    return update._filter, stage["$set"]


def of_event(expression, event_id):
    """Return the value that a `$literal` or a `value_by_id` expression has for an event."""
    if "$literal" in expression:
        return expression["$literal"]
    values, position = expression["$arrayElemAt"]
    ids, searched = position["$indexOfArray"]
    assert searched == "$_id"
    return values["$literal"][ids["$literal"].index(event_id)]


def of_claims(settlement, *changes):
    """Return one settlement per element of `changes`, of different events of one claim."""
    return [
        replace(settlement, claim=replace(settlement.claim, id=f"e{number}"), **each)
        for number, each in enumerate(changes)
    ]


def evaluated(node):
    """Yield every value of a pipeline that MongoDB would evaluate, without names of fields."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name != "$literal":
                yield from evaluated(value)
    elif isinstance(node, list):
        for value in node:
            yield from evaluated(value)
    else:
        yield node


def everything(node):
    """Yield every value of a pipeline, evaluated or not."""
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from everything(value)
    else:
        yield node


MARK = "marked"


@pytest.mark.parametrize(
    "pipeline",
    [
        pytest.param(lease_queries.claim(MARK, MARK, 1, 5), id="claim"),
        pytest.param(write(retry(text=MARK))[1], id="retry"),
        pytest.param(write(final(Status.DELIVERED, text=MARK))[1], id="end"),
        pytest.param(
            write(*of_claims(retry(text=MARK), {}, {"attempt": make_attempt()}))[1], id="two"
        ),
        pytest.param(
            replicas.heartbeat({"owner": MARK, "role": MARK, "totals": {"a": 1}}, None, 1),
            id="heartbeat",
        ),
    ],
)
def test_pipelines_never_evaluate_text_from_outside(pipeline):
    assert MARK in everything(pipeline)
    assert MARK not in evaluated(pipeline)


@pytest.mark.parametrize("text", HOSTILE)
def test_settlement_writes_keep_the_answer_of_a_downstream_inside_a_literal(text):
    old, [new] = write(retry(text=text))[1]["attempts"]["$concatArrays"]
    assert old == "$attempts"
    assert new == {"$literal": event_documents.attempt_document(make_attempt(text=text))}


@pytest.mark.parametrize("status", [Status.DELIVERED, Status.FAILED_PERMANENTLY])
def test_settlement_writes_finish_removes_the_lease_and_the_due_time(status):
    _, changes = write(final(status, "$$ROOT"))
    attempt = {"$literal": event_documents.attempt_document(make_attempt(text="$$ROOT"))}
    assert changes == {
        "attempts": {"$concatArrays": ["$attempts", [attempt]]},
        "last_status_code": {"$literal": 500},
        "status": {"$literal": status},
        "finished_at": "$$NOW",
        "lease": "$$REMOVE",
        "next_attempt_at": "$$REMOVE",
        "cancelling": "$$REMOVE",
    }


@pytest.mark.parametrize(
    ("delay_s", "delay_ms"), [(0, 0), (1, 1000), (0.05, 50), (1.0006, 1001), (300.0, 300_000)]
)
def test_settlement_writes_retry_is_due_in_milliseconds_by_the_databases_clock(delay_s, delay_ms):
    now, delay = write(retry(delay_s))[1]["next_attempt_at"]["$add"]
    assert (now, delay) == ("$$NOW", {"$literal": delay_ms})
    assert isinstance(delay["$literal"], int)


def test_settlement_writes_retry_removes_the_lease_and_keeps_status_and_count():
    _, changes = write(retry())
    assert not {"attempt_count", "status"} & set(changes)
    assert changes["lease"] == "$$REMOVE"


def test_settlement_writes_defer_removes_the_lease_and_uncounts_the_attempt():
    _, changes = write(DEFER)
    assert changes["lease"] == "$$REMOVE"
    assert changes["attempt_count"] == {"$subtract": ["$attempt_count", 1]}
    assert changes["next_attempt_at"] == {
        "$cond": [event_documents.IS_CANCELLING, "$$REMOVE", "$lease.due_at"]
    }
    assert "attempts" not in changes


def test_settlement_writes_of_one_claim_are_one_write_with_values_by_id():
    attempts = [make_attempt(number=1, text="a"), make_attempt(number=4, text="b")]
    delays = [1.0, 8.0]
    ends = of_claims(
        retry(),
        *(
            {"attempt": attempt, "delay_s": delay}
            for attempt, delay in zip(attempts, delays, strict=True)
        ),
    )
    fence, changes = write(*ends)
    assert fence["_id"] == {"$in": ["e0", "e1"]}
    for end in ends:
        [attempt] = changes["attempts"]["$concatArrays"][1]
        assert of_event(attempt, end.claim.id) == event_documents.attempt_document(end.attempt)
        _, delay = changes["next_attempt_at"]["$add"]
        assert of_event(delay, end.claim.id) == end.delay_s * 1000


def test_settlement_writes_with_different_final_states_are_one_write():
    ends = of_claims(
        final(Status.DELIVERED),
        {"status": Status.DELIVERED, "attempt": replace(make_attempt(), status_code=200)},
        {"status": Status.FAILED_PERMANENTLY, "attempt": replace(make_attempt(), status_code=None)},
    )
    _, changes = write(*ends)
    for end, code in zip(ends, (200, event_documents.NO_ANSWER), strict=True):
        assert of_event(changes["status"], end.claim.id) == end.status
        assert of_event(changes["last_status_code"], end.claim.id) == code


def test_settlement_writes_of_other_claims_or_kinds_are_writes_of_their_own():
    other = replace(DEFER, claim=make_claim(2))
    ends = [retry(), final(Status.DELIVERED), CANCELLED, DEFER, other]
    filters = [update._filter for update in lease_queries.settlement_writes(ends)]
    assert [each["lease.token"] for each in filters] == ["t1", "t1", "t1", "t1", "t2"]


@pytest.mark.parametrize(
    "settlement",
    [retry(), final(Status.DELIVERED), final(Status.FAILED_PERMANENTLY), CANCELLED, DEFER],
    ids=["retry", "delivered", "failed", "cancelled", "defer"],
)
def test_settlement_writes_are_fenced_by_the_token_of_their_claim(settlement):
    assert write(settlement)[0].items() >= {"_id": "e1", "lease.token": "t1"}.items()
    together = write(*of_claims(settlement, {}, {}))
    assert together[0].items() >= {"_id": {"$in": ["e0", "e1"]}, "lease.token": "t1"}.items()


def test_settlement_writes_one_by_one_are_one_write_per_event():
    ends = of_claims(DEFER, {}, {}, {})
    apart = lease_queries.settlement_writes(ends, one_by_one=True)
    assert [each._filter["_id"] for each in apart] == ["e0", "e1", "e2"]
    assert {type(each) for each in apart} == {UpdateOne}
    assert [type(each) for each in lease_queries.settlement_writes(ends)] == [UpdateMany]


def test_settlement_writes_retry_and_cancel_never_match_the_same_event():
    assert write(retry())[0]["cancelling"] == {"$exists": False}
    assert write(CANCELLED)[0]["cancelling"] is True


def test_claim_records_a_lost_attempt_with_the_fields_of_any_other():
    [stage] = lease_queries.claim("t", "o", 1, 5)
    _expired, taken_over, _otherwise = stage["$set"]["attempts"]["$cond"]
    _old, [lost] = taken_over["$concatArrays"]
    assert set(lost) == set(event_documents.attempt_document(make_attempt()))
    assert lost["outcome"] == {"$literal": Outcome.UNKNOWN}


def test_claim_sets_the_expiry_in_milliseconds_by_the_databases_clock():
    [stage] = lease_queries.claim("t", "o", 30_000, 5)
    _buries, if_buried, expiry = stage["$set"]["next_attempt_at"]["$cond"]
    assert if_buried == "$$REMOVE"
    assert expiry == {"$add": ["$$NOW", 30_000]}


def test_claim_buries_an_event_without_attempts_left_or_cancelled():
    [stage] = lease_queries.claim("t", "o", 1, 5)
    since_replay = {"$subtract": ["$attempt_count", {"$ifNull": ["$attempts_before", 0]}]}
    used_up = {"$gte": [since_replay, 5]}
    buries = {"$or": [used_up, event_documents.IS_CANCELLING]}
    lost = {"$ne": [{"$type": "$lease"}, "missing"]}
    burial = {"by": {"$literal": "t"}, "cancelled": {"$not": [used_up]}, "lost": lost}
    for name, if_buried in [
        ("buried", burial),
        ("status", {"$literal": Status.FAILED_PERMANENTLY}),
        ("next_attempt_at", "$$REMOVE"),
        ("lease", "$$REMOVE"),
        ("finished_at", "$$NOW"),
    ]:
        assert stage["$set"][name]["$cond"][:2] == [buries, if_buried], name


def test_claimable_uses_the_databases_clock_and_fits_the_partial_index():
    due = lease_queries.claimable("default")
    assert due["destination"] == "default"
    assert due["$expr"] == {"$lte": ["$next_attempt_at", "$$NOW"]}
    partial = indexes.CLAIM_INDEX.document["partialFilterExpression"]
    assert partial.items() <= due.items()


def test_settled_by_matches_only_a_known_outcome_of_this_attempt():
    third = Settlement(make_claim(3), make_attempt(number=3), Status.DELIVERED)
    clauses = lease_queries.settled_by([retry(), DEFER, third])["$or"]
    assert [clause["_id"] for clause in clauses] == ["e1", "e3"]
    assert clauses[1]["attempts"] == {
        "$elemMatch": {"attempt_number": 3, "outcome": {"$ne": Outcome.UNKNOWN}}
    }


@pytest.mark.parametrize(
    "document",
    [
        event_documents.event_document(new_event(key="k", headers={"user-agent": "x"}), NOW),
        {"p": lease_queries.claim("t", "o", 1, 5)},
        {"p": [write(each)[1] for each in (retry(), final(Status.DELIVERED), DEFER)]},
        lease_queries.settled_by([retry()]),
        {
            "p": rollup_queries.count_pairs(
                [(NOW, NOW.replace(hour=13))], {"status": {"$in": [*Status]}}
            )
        },
    ],
    ids=["event", "claim", "settlement", "settled", "tally"],
)
def test_documents_and_pipelines_can_be_encoded_as_bson(document):
    assert bson.decode(bson.encode(document), bson.CodecOptions(tz_aware=True)) == document
