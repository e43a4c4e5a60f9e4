"""The order of the steps of one delivery, without engines."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace

from tests.support import make_destination
from wds.delivery.rate_limiter import Slot
from wds.dispatcher import Dispatcher
from wds.domain.attempt_results import NotSent
from wds.domain.deliveries import Claim


class RecordingLane:
    """A lane, its client and the request, which record the steps of a delivery."""

    def __init__(self) -> None:
        self.destination = make_destination("http://127.0.0.1:9/")
        self.steps: list[str] = []
        self.client = self
        self.failure = None
        self.is_open = True

    def connect(self, _claim):
        return self

    async def __aenter__(self):
        self.steps.append("connect")
        return self

    async def __aexit__(self, *_):
        self.steps.append("leave")

    async def wait_for_slot(self, _slot):
        self.steps.append("wait for the slot")
        return True

    def stop_waiting(self, _slot):
        pass

    def may_send(self, _claim):
        self.steps.append("check the lease")
        return True

    async def send(self, headers):
        self.steps.append(f"send {headers}")
        return NotSent("for this test")


class RecordingTracer:
    """A tracer whose headers are known only when it is asked for them."""

    def __init__(self, steps: list[str]) -> None:
        self.steps = steps

    @contextmanager
    def delivery(self, _claim, *, limited):
        assert limited
        yield self

    facts: dict[str, str] = {}  # noqa: RUF012 - nothing changes it

    def sent(self) -> dict[str, str]:
        self.steps.append("begin the span")
        return {"traceparent": "00"}


async def test_delivery_connects_then_waits_then_checks_the_lease_then_begins_its_span_and_sends():
    async def settle(settlements):
        return list(settlements)

    lane = RecordingLane()
    store = SimpleNamespace(queue=SimpleNamespace(settle=settle))
    tracer = RecordingTracer(lane.steps)
    dispatcher = Dispatcher([lane], owner="d", store=store, lease_s=30, tracer=tracer)
    now = datetime.now(UTC)
    claim = Claim("e", "t", 1, now, 0.0, 0.0, "default", None, "application/json", b"{}")
    await dispatcher.deliver(lane, claim, Slot("s", 0.0, 0.0))
    assert lane.steps == [
        "connect",
        "wait for the slot",
        "check the lease",
        "begin the span",
        "send {'traceparent': '00'}",
        "leave",
    ]
