"""Random walks of the lease queue and the rate limiter on real engines, against a model of each."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings as hypothesis_settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from motor.motor_asyncio import AsyncIOMotorClient

from tests.support import clock_caught_up, most_in_any_second, new_event
from wds.delivery.rate_limiter import RateLimiter
from wds.domain.deliveries import Attempt, Claim, Outcome, Settlement, Status
from wds.domain.events import Conflict
from wds.domain.invariants import Expectations, violations
from wds.domain.operator_actions import Action, Instruction
from wds.storage import lease_queries
from wds.storage.bulk_actions import Verdict
from wds.storage.store import Store

MAX_ATTEMPTS = 3
WALKS = hypothesis_settings(
    max_examples=30,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
"""30 walks of up to 50 steps per machine; the test checks that each machine took 1,000 steps."""
STEPS: list[str] = []


@dataclass
class Modelled:
    """The model of one event."""

    payload: bytes
    status: str = "RECEIVED"
    outcomes: list[str] = field(default_factory=list)
    holder: Claim | None = None
    before: int = 0
    """Attempts before the last replay."""
    cancelling: bool = False
    requests: list[tuple[Action, str]] = field(default_factory=list)
    """The replays and cancels that changed it, with the ids of their requests."""

    @property
    def final(self) -> bool:
        return self.status in ("DELIVERED", "FAILED_PERMANENTLY")

    def end(self, outcome: str | None) -> None:
        """End the lease: with a recorded outcome, or None if nothing was sent."""
        self.holder = None
        if outcome is not None:
            self.outcomes.append(outcome)
        if outcome == "success":
            self.status = "DELIVERED"
        elif self.cancelling:
            stopped = "DELIVERED" if self.outcomes[-1:] == ["success"] else "FAILED_PERMANENTLY"
            self.status = stopped
        elif len(self.outcomes) - self.before >= MAX_ATTEMPTS:
            self.status = "FAILED_PERMANENTLY"
        else:
            self.status = "DELIVERING" if self.outcomes else "RECEIVED"
        self.cancelling = False


class LeaseQueue(RuleBasedStateMachine):
    """Insert, claim, settle, defer and expire in any order; settle with lost leases as well."""

    runner: asyncio.Runner
    mongo_url: str

    def __init__(self) -> None:
        super().__init__()
        self.name = f"test_{secrets.token_hex(6)}"
        self.client: AsyncIOMotorClient[dict[str, Any]] = self.run(self._client())
        self.db = self.client[self.name]
        self.store: Store = self.run(self._open())
        self.events: dict[str, Modelled] = {}
        self.stale: list[Claim] = []
        self.expiries = 0

    def run(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        return self.runner.run(wait())

    async def _client(self) -> Any:
        return AsyncIOMotorClient(self.mongo_url, tz_aware=True, w="majority")

    async def _open(self) -> Store:
        store = Store(self.mongo_url, self.name)
        await store.open()
        return store

    def teardown(self) -> None:
        self.run(self.client.drop_database(self.name))
        self.client.close()
        self.run(self.store.close())

    @rule(key=st.integers(0, 5), body=st.sampled_from([b'{"a":1}', b'{"a":2}']))
    def insert(self, key: int, body: bytes) -> None:
        STEPS.append("insert")
        event = new_event(body, key=f"k{key}")
        [result] = self.run(self.store.writer.insert([event]))
        known = self.events.get(event.id)
        if known is None:
            self.events[event.id] = Modelled(body)
            assert (result.status, result.duplicate) == ("RECEIVED", False)
        elif known.payload != body:
            assert result == Conflict(event.id, known.status)
        else:
            assert (result.status, result.duplicate) == (known.status, True)

    @rule(limit=st.integers(1, 4))
    def claim(self, limit: int) -> None:
        STEPS.append("claim")
        self.run(clock_caught_up(self.store))
        claimed = self.run(
            self.store.queue.claim(
                "default", limit, owner="d", lease_s=60, max_attempts=MAX_ATTEMPTS
            )
        )
        free = [e for e in self.events.values() if e.status in ("RECEIVED", "DELIVERING")]
        free = [e for e in free if e.holder is None]
        assert len(claimed.claims) <= limit
        assert len(claimed.claims) == min(limit, len(free))
        for claim in claimed.claims:
            event = self.events[claim.id]
            assert event.holder is None
            assert claim.payload == event.payload
            event.status, event.holder = "DELIVERING", claim
            assert claim.attempt_number == len(event.outcomes) + 1

    def held(self) -> list[Claim]:
        return [event.holder for event in self.events.values() if event.holder is not None]

    @precondition(lambda self: self.held())
    @rule(data=st.data(), outcome=st.sampled_from(["success", "failure", "defer"]))
    def settle(self, data: st.DataObject, outcome: str) -> None:
        STEPS.append("settle")
        claim = data.draw(st.sampled_from(self.held()))
        assert self.run(self.store.queue.settle([self.settlement(claim, outcome)])) != [None]
        self.stale.append(claim)
        self.events[claim.id].end(None if outcome == "defer" else outcome)

    def settlement(self, claim: Claim, outcome: str) -> Settlement:
        if outcome == "defer":
            return Settlement(claim, None)
        good = outcome == "success"
        attempt = Attempt(
            claim.attempt_number,
            claim.leased_at,
            Outcome(outcome),
            200 if good else 500,
            1,
            None if good else "no",
            None,
        )
        if good:
            return Settlement(claim, attempt, Status.DELIVERED)
        if claim.schedule_step >= MAX_ATTEMPTS:
            return Settlement(claim, attempt, Status.FAILED_PERMANENTLY)
        return Settlement(claim, attempt, Status.DELIVERING, 0.0)

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        """Let a lease expire, as if its dispatcher had died, and claim again."""
        STEPS.append("expire")
        claim = data.draw(st.sampled_from(self.held()))
        self.expiries += 1  # each is due before the others; a deferred one keeps its due time
        ago_ms = 30_000 * (1 + self.expiries)
        past = [{"$set": {"next_attempt_at": {"$subtract": ["$$NOW", ago_ms]}}}]
        self.run(self.db.events.update_one({"_id": claim.id}, past))
        self.stale.append(claim)
        claimed = self.run(
            self.store.queue.claim("default", 1, owner="e", lease_s=60, max_attempts=MAX_ATTEMPTS)
        )
        event = self.events[claim.id]
        event.end("unknown")
        if event.final:
            exhausted = len(event.outcomes) - event.before >= MAX_ATTEMPTS
            assert claimed.exhausted_ids == [claim.id] * exhausted
            assert claimed.cancelled_ids == [claim.id] * (not exhausted)
            for other in claimed.claims:  # the claim went on to the next due event
                self.events[other.id].holder = other
                self.events[other.id].status = "DELIVERING"
        else:
            [newer] = claimed.claims
            assert (newer.id, claimed.recovered) == (claim.id, 1)
            event.status, event.holder = "DELIVERING", newer

    def instruct(self, action: Action, event_id: str, request: int) -> bool:
        """Carry out an instruction; both actions draw from the same request ids."""
        instruction = Instruction(action, f"r{request}", "ann", "127.0.0.1")
        changed = self.run(self.store.bulk_actions.apply(event_id, instruction))
        event = self.events[event_id]
        did = [each for each, known in event.requests if known == instruction.request_id]
        if did:
            expected = Verdict.REPEATED if did == [action] else Verdict.CONFLICT
            assert changed.verdict is expected
            return False
        assert changed.verdict not in (Verdict.REPEATED, Verdict.CONFLICT)
        if changed.verdict is not Verdict.DONE:
            return False
        event.requests.append((action, instruction.request_id))
        return True

    def known(self, event_id: str, request: int) -> bool:
        return f"r{request}" in [known for _, known in self.events[event_id].requests]

    @precondition(lambda self: self.events)
    @rule(data=st.data(), request=st.integers(0, 3))
    def replay(self, data: st.DataObject, request: int) -> None:
        STEPS.append("replay")
        event_id = data.draw(st.sampled_from(sorted(self.events)))
        event = self.events[event_id]
        made = len(event.outcomes) - event.before
        known = self.known(event_id, request)
        possible = not known and event.holder is None and (event.final or made > 0)
        assert self.instruct(Action.REPLAY, event_id, request) == possible
        if possible:
            event.before = len(event.outcomes)
            event.status = "DELIVERING" if event.outcomes else "RECEIVED"

    @precondition(lambda self: self.events)
    @rule(data=st.data(), request=st.integers(0, 3))
    def cancel(self, data: st.DataObject, request: int) -> None:
        STEPS.append("cancel")
        event_id = data.draw(st.sampled_from(sorted(self.events)))
        event = self.events[event_id]
        known = self.known(event_id, request)
        possible = not known and not event.final and not event.cancelling
        assert self.instruct(Action.CANCEL, event_id, request) == possible
        if possible and event.holder is not None:
            event.cancelling = True
        elif possible:
            event.cancelling = True
            event.end(None)

    @precondition(lambda self: self.stale)
    @rule(data=st.data(), outcome=st.sampled_from(["success", "failure"]))
    def settle_too_late(self, data: st.DataObject, outcome: str) -> None:
        STEPS.append("too late")
        claim = data.draw(st.sampled_from(self.stale))
        before = self.run(self.db.events.find_one({"_id": claim.id}))
        # The return value is not checked: it may be that of a repeat after a lost answer.
        self.run(self.store.queue.settle([self.settlement(claim, outcome)]))
        assert self.run(self.db.events.find_one({"_id": claim.id})) == before

    @invariant()
    def the_database_agrees(self) -> None:
        documents = self.run(self.db.events.find().to_list(None))
        assert {each["_id"] for each in documents} == set(self.events)
        now = self.run(self.db.command("hello"))["localTime"].replace(tzinfo=UTC)
        for each in documents:
            event = self.events[each["_id"]]
            assert each["status"] == event.status
            assert [attempt["outcome"] for attempt in each["attempts"]] == event.outcomes
            token = event.holder and event.holder.token
            assert each.get("lease", {}).get("token") == token
            assert ("cancelling" in each) == event.cancelling
            history = [(entry["action"], entry["request_id"]) for entry in each.get("history", [])]
            assert history == event.requests
            expected = Expectations(now, MAX_ATTEMPTS, (0.0,), 3600)
            assert list(violations(each, expected)) == []


class Window(RuleBasedStateMachine):
    """Reserve, use and return slots by several replicas; the model keeps those used."""

    runner: asyncio.Runner
    redis_url: str
    limit = 3

    def __init__(self) -> None:
        super().__init__()
        self.database = secrets.token_hex(6)
        self.replicas = self.runner.run(self._replicas())
        self.unused: list[Any] = []
        self.used: list[float] = []

    async def _replicas(self) -> list[RateLimiter]:
        return [
            RateLimiter(self.redis_url, self.limit, database=self.database, farthest_s=20)
            for _ in range(3)
        ]

    def teardown(self) -> None:
        for replica in self.replicas:
            self.runner.run(replica.close())

    @rule(replica=st.integers(0, 2), count=st.integers(0, 4), back=st.integers(0, 3))
    def reserve(self, replica: int, count: int, back: int) -> None:
        STEPS.append("reserve")
        returned, self.unused = self.unused[:back], self.unused[back:]
        granted = self.runner.run(
            self.replicas[replica].reserve("default", count, give_back=returned)
        )
        assert len(granted.slots) <= count
        assert all(slot.ready_at <= time.monotonic() + 20 for slot in granted.slots)
        # If the answer came too late for a slot, nobody may use it.
        self.unused += [slot for slot in granted.slots if slot.ready_at <= slot.use_by]

    @rule(place=st.integers(0, 1000))
    def use(self, place: int) -> None:
        STEPS.append("use")
        if self.unused:  # their number depends on the time, so hypothesis must not draw from them
            slot = self.unused.pop(place % len(self.unused))
            self.used.append(slot.ready_at)

    @invariant()
    def no_window_holds_more_than_the_limit(self) -> None:
        assert most_in_any_second([*self.used, *(slot.ready_at for slot in self.unused)]) <= 3


@pytest.mark.parametrize("machine", [LeaseQueue, Window], ids=lambda each: each.__name__)
def test_queue_and_limiter_agree_with_a_model_on_random_walks(engines, machine):
    STEPS.clear()
    with asyncio.Runner() as runner:
        attributes = {
            "runner": runner,
            "mongo_url": engines.mongo_url,
            "redis_url": engines.redis_url,
        }
        bound = type(machine.__name__, (machine,), attributes)
        run_state_machine_as_test(bound, settings=WALKS)
    assert len(STEPS) >= 1000


def test_control_random_walk_without_the_fence_finds_a_late_settlement(engines, monkeypatch):
    monkeypatch.setattr(lease_queries, "fence", lambda ids, _token: {"_id": {"$in": ids}})
    # The run ends with the first walk that finds one. 300 walks: 30 have missed it once.
    unshrunk = hypothesis_settings(WALKS, phases=[Phase.generate], max_examples=300)
    with asyncio.Runner() as runner:
        attributes = {"runner": runner, "mongo_url": engines.mongo_url}
        bound = type("Unfenced", (LeaseQueue,), attributes)
        with pytest.raises(AssertionError):
            run_state_machine_as_test(bound, settings=unshrunk)
