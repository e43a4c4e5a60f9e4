"""The results of a run, as a table, as JSON and as a plot."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import psutil
from matplotlib.figure import Figure

from benchmarks.rows import RATE

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.rows import Figures, Row

COLOURS = {"wds": "#2563eb"}
OTHERS = ["#94a3b8", "#cbd5e1", "#64748b", "#b6c2d1", "#475569"]


def machine() -> dict[str, Any]:
    """Describe the machine and the versions that were measured."""
    model = platform.processor() or platform.machine()
    try:
        lines = open("/proc/cpuinfo", encoding="utf-8").read().splitlines()  # noqa: SIM115, PTH123
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def as_json(measured: list[tuple[Row, Figures]]) -> dict[str, Any]:
    """Return every sample of every row."""
    return {
        "machine": machine(),
        "rows": [
            {
                "name": row.name,
                "unit": row.unit,
                "sides": {
                    side: {
                        "median": figures.median(side),
                        "spread": figures.spread(side),
                        "samples": [{RATE: s.value, **s.extra} for s in samples],
                    }
                    for side, samples in figures.samples.items()
                },
                "targets": [
                    {"text": target.text, "reached": judged[0], "met": judged[1]}
                    for target in row.targets
                    if (judged := target.judge(figures)) is not None
                ],
            }
            for row, figures in measured
        ],
    }


def table(found: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    lines = [
        "| what | side | median | spread | also | target: reached |",
        "|---|---|--:|---|---|---|",
    ]
    for row in found["rows"]:
        targets = "<br>".join(
            f"{each['text']}: **{each['reached']:.3g}** {'✓' if each['met'] else '✗'}"
            for each in row["targets"]
        )
        for number, (side, figures) in enumerate(row["sides"].items()):
            low, high = figures["spread"]
            lines.append(
                f"| {row['name'] if number == 0 else ''} | {side} "
                f"| {_number(figures['median'])} {row['unit']} | {_number(low)} to {_number(high)} "
                f"| {_also(figures['samples'])} | {targets if number == 0 else ''} |"
            )
    return "\n".join(lines)


def _also(samples: list[dict[str, float]]) -> str:
    names = [name for name in samples[0] if name != RATE]
    middle = {name: sorted(sample[name] for sample in samples)[len(samples) // 2] for name in names}
    return ", ".join(f"{name} {_number(value)}" for name, value in middle.items())


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw the medians and the spread of each row with several sides, if there is one, as bars."""
    mpl.rcParams["svg.hashsalt"] = "wds"
    rows = [row for row in found["rows"] if len(row["sides"]) > 1]
    if not rows:
        return
    figure = Figure(figsize=(9, 0.6 + sum(0.55 + 0.27 * len(row["sides"]) for row in rows)))
    heights = [0.55 + 0.27 * len(row["sides"]) for row in rows]
    all_axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, row in zip(all_axes, rows, strict=True):
        sides = list(row["sides"])[::-1]
        medians = [row["sides"][side]["median"] for side in sides]
        spreads = [row["sides"][side]["spread"] for side in sides]
        errors = [
            [middle - low for middle, (low, _) in zip(medians, spreads, strict=True)],
            [high - middle for middle, (_, high) in zip(medians, spreads, strict=True)],
        ]
        ours = COLOURS["wds"]
        first = next(iter(row["sides"]))
        colours = [ours if side == first else OTHERS[0] for side in sides]
        axes.barh(sides, medians, xerr=errors, color=colours, ecolor="#334155", capsize=2)
        for place, value in enumerate(medians):
            axes.text(value, place, f"  {_number(value)}", va="center", fontsize=8)
        axes.set_title(f"{row['name']} ({row['unit']})", loc="left", fontsize=9, weight="bold")
        axes.tick_params(labelsize=8)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def write(found: dict[str, Any], folder: Path) -> None:
    """Write `results.json`, `table.md` and `results.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "table.md").write_text(table(found) + "\n")
    plot(found, folder / "results.svg")
