"""How often a client may present a wrong token, and who counts as one client."""

from __future__ import annotations

from wds.web.failure_throttle import (
    BURST,
    MAX_CLIENTS,
    REFILL_S,
    FailureThrottle,
    _network,
)


def test_throttle_lets_a_client_try_again_after_it_waited():
    now = 1000.0
    failures = FailureThrottle(lambda: now)
    for _ in range(BURST):
        assert failures.wait_s("a") <= 0
        failures.count("a")
    assert failures.wait_s("a") == REFILL_S
    assert failures.wait_s("b") <= 0
    now += REFILL_S
    assert failures.wait_s("a") <= 0
    failures.count("a")
    assert failures.wait_s("a") == REFILL_S
    now += BURST * REFILL_S
    assert failures.wait_s("a") == -(BURST - 1) * REFILL_S


def test_throttle_remembers_a_bounded_number_of_clients():
    failures = FailureThrottle(lambda: 0.0)
    for number in range(MAX_CLIENTS + 50):
        failures.count(str(number))
    assert len(failures) == MAX_CLIENTS


def test_throttle_counts_an_ipv6_network_as_one_client():
    assert _network("2001:db8::1") == _network("2001:db8::ffff:2") != _network("2001:db8:0:1::1")
    assert _network("::ffff:10.0.0.1") == _network("10.0.0.1") != _network("10.0.0.2")
