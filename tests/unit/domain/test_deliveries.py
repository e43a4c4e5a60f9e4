"""The names of states and outcomes, and how attempts are counted after a replay."""

from __future__ import annotations

from wds.domain.deliveries import LIVE_STATUSES, Outcome, Status, attempts_since_replay


def test_status_has_these_four_values():
    assert [*Status] == ["RECEIVED", "DELIVERING", "DELIVERED", "FAILED_PERMANENTLY"]


def test_live_statuses_are_those_before_the_final_ones():
    assert set(Status) - set(LIVE_STATUSES) == {Status.DELIVERED, Status.FAILED_PERMANENTLY}


def test_outcome_has_these_three_values():
    assert [*Outcome] == ["success", "failure", "unknown"]


def test_attempts_since_replay_leaves_out_those_before_it():
    assert attempts_since_replay(3, 0) == 3
    assert attempts_since_replay(7, 5) == 2
