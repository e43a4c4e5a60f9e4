"""`python -m benchmarks`: measure, print one table, and write it as JSON and as a plot."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import (
    claims,
    delivery,
    indexes,
    ingest,
    memory,
    peers,
    report,
    search,
    sizes,
    stack,
)
from benchmarks.payloads import SMALL, generated, of_size, real
from benchmarks.rows import Figures, Row, measure

TOOLS = {"wrk": "wrk", "nginx": "nginx-light"}
"""Programs that are needed -> their packages in Debian."""
BODIES = 60


@dataclass(frozen=True)
class Size:
    """The size of a run: rounds, seconds of load, numbers of events."""

    rounds: int
    seconds: int
    backlog: int
    latency_events: int
    queue: int
    history: int
    searches: int
    memory_backlog: int
    memory_s: int
    sizes: int
    indexed: int


FULL = Size(3, 5, 20_000, 100, 1_000_000, 1_000_000, 200, 100_000, 600, 5_000, 10_000)
SMOKE = Size(1, 1, 300, 8, 500, 500, 10, 300, 2, 128, 128)


def rows(
    engines: stack.Engines, size: Size, found: list[peers.Peer], real_from: Path | None
) -> dict[str, list[Row]]:
    """Return the rows of every group."""
    rng = random.Random(1)
    name = "generated payloads" if real_from is None else "real payloads"
    bodies = generated(BODIES) if real_from is None else real(real_from)
    small = [of_size(SMALL, rng) for _ in range(BODIES)]
    twelve = [of_size(12_000, rng) for _ in range(BODIES)]
    sets = {
        name: bodies,
        "600 bytes": small,
        "64 KB": [of_size(64_000, rng) for _ in range(8)],
        "1 MB": [of_size(1_000_000, rng) for _ in range(4)],
    }
    return {
        "ingest": ingest.rows(engines, found, sets, size.seconds),
        "delivery": delivery.rows(engines, found, bodies, size.backlog, size.latency_events),
        "claims": claims.rows(engines, rng, size.queue),
        "sizes": sizes.rows(engines, rng, size.sizes),
        "indexes": indexes.rows(engines, rng, size.indexed),
        "search": search.rows(engines, size.history, size.searches),
        "memory": memory.rows(engines, twelve, size.memory_backlog, size.memory_s),
    }


async def run(arguments: argparse.Namespace) -> list[tuple[Row, Figures]]:
    """Measure the chosen groups on engines of this run."""
    size = SMOKE if arguments.smoke else FULL
    if arguments.memory_seconds:
        size = replace(size, memory_s=arguments.memory_seconds)
    found = peers.read(arguments.peers) if arguments.peers else []
    home = Path(tempfile.mkdtemp(prefix="wds-bench-"))
    measured = []
    try:
        async with stack.engines(home) as engines:
            groups = rows(engines, size, found, arguments.payloads)
            for group in arguments.only or groups:
                for row in groups[group]:
                    rounds = 1 if group == "memory" else arguments.rounds or size.rounds
                    measured.append((row, await measure(row, rounds, say)))
    finally:
        shutil.rmtree(home)
    return measured


def say(line: str) -> None:
    """Show progress."""
    sys.stderr.write(line + "\n")


def main() -> int:
    """Run and report; the exit status does not depend on the figures."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    groups = ["ingest", "delivery", "claims", "sizes", "indexes", "search", "memory"]
    parser.add_argument("--only", action="append", choices=groups, help="a group; repeatable")
    parser.add_argument("--payloads", type=Path, help="folder of real JSON payloads")
    parser.add_argument("--peers", type=Path, help="TOML file of peers, see benchmarks/peers.py")
    parser.add_argument("--memory-seconds", type=int, help="how long the load on ingest lasts")
    parser.add_argument("--rounds", type=int, help="measurements of each side")
    parser.add_argument(
        "--smoke", action="store_true", help="a little of everything, to see it run"
    )
    parser.add_argument("--out", type=Path, help="folder for results.json, table.md, results.svg")
    arguments = parser.parse_args()
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        say(
            f"install {' and '.join(missing)} first, such as by apt-get install {' '.join(missing)}"
        )
        return 2
    found = report.as_json(asyncio.run(run(arguments)))
    sys.stdout.write(report.table(found) + "\n")
    if arguments.out:
        report.write(found, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
