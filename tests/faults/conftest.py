"""The scale of the fault tests, and the seed that determines their schedule of faults."""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Scale:
    """The size of one run; the guarantees are measured with `long`."""

    events: int
    kills: int
    stops: int
    primaries: int
    stalls: int
    cuts: int
    outages: int
    redis_stall_s: float
    limit_s: int
    replayed: int
    replay_kills: int


SCALES = {
    "short": Scale(1000, 6, 3, 1, 1, 6, 1, 3, 8, 3000, 1),
    "long": Scale(20_000, 100, 50, 20, 5, 300, 10, 30, 300, 100_000, 2),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scale", choices=sorted(SCALES), default="short")
    parser.addoption("--seed", type=int, default=None, help="replays a schedule of faults")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--scale") == "long":
        for item in items:
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> Scale:
    return SCALES[request.config.getoption("--scale")]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return the schedule's seed, and print the command that replays it if the test fails."""
    from_option = request.config.getoption("--seed")
    chosen = secrets.randbelow(2**31) if from_option is None else from_option
    size = request.config.getoption("--scale")
    sys.stdout.write(f"replay: pytest '{request.node.nodeid}' --scale {size} --seed {chosen}\n")
    return chosen
