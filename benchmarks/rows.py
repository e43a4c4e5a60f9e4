"""A row of the table: one quantity, measured on several sides in turn, and its targets."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

RATE = "value"
"""The name of a sample's main figure, beside those in `extra`."""


@dataclass(frozen=True)
class Sample:
    """One measurement: the row's quantity, and further figures."""

    value: float
    extra: dict[str, float] = field(default_factory=dict)

    def get(self, key: str) -> float:
        """Return a figure by name."""
        return self.value if key == RATE else self.extra[key]


Measure = Callable[[], Awaitable[Sample]]


@dataclass
class Figures:
    """All samples of one row, by side."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def median(self, side: str, key: str = RATE) -> float:
        """Return the median of one side's figure."""
        return statistics.median(sample.get(key) for sample in self.samples[side])

    def spread(self, side: str, key: str = RATE) -> tuple[float, float]:
        """Return the minimum and the maximum of one side's figure."""
        values = [sample.get(key) for sample in self.samples[side]]
        return min(values), max(values)

    def best(self, prefix: str) -> float:
        """Return the largest median of the sides whose name begins with `prefix`."""
        return max(self.median(side) for side in self.samples if side.startswith(prefix))


@dataclass(frozen=True)
class Target:
    """A target. It can be judged only if the sides `needs` were measured."""

    text: str
    figure: Callable[[Figures], float]
    least: float | None = None
    most: float | None = None
    needs: tuple[str, ...] = ()

    def judge(self, figures: Figures) -> tuple[float, bool] | None:
        """Return the figure and whether it is reached; None if a side was not measured."""
        for prefix in self.needs:
            if not any(side.startswith(prefix) for side in figures.samples):
                return None
        reached = self.figure(figures)
        good = (self.least is None or reached >= self.least) and (
            self.most is None or reached <= self.most
        )
        return reached, good


@dataclass(frozen=True)
class Row:
    """A quantity, the measurement of each side, and the targets."""

    name: str
    unit: str
    sides: dict[str, Measure]
    targets: tuple[Target, ...] = ()


def at_least(times: float, peer: str) -> Target:
    """Return the target of a rate: a multiple of the peer's best rate."""
    return Target(
        f"≥ {times:g} x {peer}",
        lambda figures: figures.median("wds") / figures.best(peer),
        least=times,
        needs=("wds", peer),
    )


def at_most(times: float, side: str, base: str) -> Target:
    """Return the target of a cost: at most a multiple of another side's cost."""
    return Target(
        f"{side} ≤ {times:g} x {base}",
        lambda figures: figures.median(side) / figures.median(base),
        most=times,
        needs=(side, base),
    )


def no_slower(side: str, times: float, base: str) -> Target:
    """Return the target of a rate: at least a share of another side's rate."""
    return Target(
        f"{side} ≥ {times:g} x {base}",
        lambda figures: figures.median(side) / figures.median(base),
        least=times,
        needs=(side, base),
    )


def within(most: float, key: str, unit: str, side: str = "wds") -> Target:
    """Return the target of a figure: an upper bound."""
    return Target(
        f"{key} ≤ {most:g} {unit}",
        lambda figures: figures.median(side, key),
        most=most,
        needs=(side,),
    )


async def measure(row: Row, rounds: int, say: Callable[[str], None]) -> Figures:
    """Measure every side `rounds` times, in turn; each round begins with a different side."""
    figures = Figures({side: [] for side in row.sides})
    names = list(row.sides)
    for number in range(rounds):
        shift = number % len(names)
        for side in names[shift:] + names[:shift]:
            sample = await row.sides[side]()
            figures.samples[side].append(sample)
            say(f"{row.name} · {side}: {sample.value:,.2f} {row.unit} {_extra(sample)}")
    return figures


def _extra(sample: Sample) -> str:
    return " ".join(f"{name}={value:,.1f}" for name, value in sample.extra.items())
