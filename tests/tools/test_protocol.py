"""The models of the protocol in docs/protocol, checked exhaustively by Spin.

Needs `spin` and `gcc` on the PATH. Each guard has a control: without it Spin finds an error.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol"
MEMORY_LIMIT_MB = 1000


@dataclass(frozen=True)
class Verdict:
    """What a search of a model came to."""

    errors: int
    states: int
    complete: bool
    failed: str
    """The assertion that does not hold, or the kind of cycle; empty without an error."""


def check(folder: Path, model: str, *definitions: str, formula: str | None = None) -> Verdict:
    """Search the whole state space, for a formula under weak fairness; stop at an error."""

    def output(*command: str) -> str:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    purpose = ["-DSAFETY", "-DNOCLAIM"] if formula is None else ["-DNFAIR=3"]
    search = [] if formula is None else ["-a", "-f", "-N", formula]
    output("spin", "-a", *(f"-D{each}" for each in definitions), str(PROTOCOL / model))
    limits = ["-DCOLLAPSE", f"-DMEMLIM={MEMORY_LIMIT_MB}"]
    # A search that ends at an error takes less time than optimising it would.
    optimise = "-O0" if any(each.startswith("WITHOUT_") for each in definitions) else "-O2"
    output("gcc", optimise, "-w", *limits, *purpose, "-o", "pan", "pan.c")
    report = output("./pan", "-m1000000", *search)
    failed = re.search(r"pan:1: (.*) \(at depth", report)
    return Verdict(
        errors=int(re.findall(r"errors: (\d+)", report)[-1]),
        states=int(re.findall(r"(\d+) states, stored", report)[-1]),
        complete="Search not completed" not in report and "max search depth" not in report,
        failed=failed[1] if failed else "",
    )


ONE_DELIVERY = ("lease.pml",)
TWO_DELIVERIES = ("lease.pml", "DELIVERIES=2", "MAX_ATTEMPTS=1", "REPLAYS=0", "CANCELS=0")
ENDING = ("lease.pml", "LIVENESS", "REPLAYS=0", "STRAYS=0", "STALLS=2")
ACCEPTANCE = ("acceptance.pml",)


@pytest.mark.parametrize(
    ("bounds", "formula", "least_states"),
    [
        (ONE_DELIVERY, None, 300_000),
        (TWO_DELIVERIES, None, 200_000),
        (ENDING, "every_delivery_ends", 200_000),
        (ACCEPTANCE, None, 1_000),
        (ACCEPTANCE, "acknowledged_is_never_lost", 1_000),
        (ACCEPTANCE, "one_payload", 1_000),
    ],
)
def test_the_protocol_has_no_error_within_its_bounds(tmp_path, bounds, formula, least_states):
    verdict = check(tmp_path, *bounds, formula=formula)
    assert (verdict.errors, verdict.failed) == (0, "")
    assert verdict.complete
    assert verdict.states > least_states, "the model has lost behaviour"


@pytest.mark.parametrize(
    ("bounds", "guard", "failed"),
    [
        (ONE_DELIVERY, "FENCE", "attempt_count=="),
        (ONE_DELIVERY, "DATABASE_CLOCK", "lease_left"),
        (ONE_DELIVERY, "TRUST_WINDOW", "lease_left"),
        (ONE_DELIVERY, "COUNT", "sent"),
        (ONE_DELIVERY, "READ_BACK", "written"),
        (ONE_DELIVERY, "CANCELLING", "cancelling"),
        (ONE_DELIVERY, "REQUEST_ID", "attempt_count<"),
        (ONE_DELIVERY, "LEASE_IN_REPLAY", "status"),
        (ONE_DELIVERY, "UNKNOWN", "attempt_count=="),
        (TWO_DELIVERIES, "CLAIM_READ_BACK", "lease_left"),
        (ACCEPTANCE, "DERIVED_ID", "documents=="),
        (ACCEPTANCE, "MAJORITY", "durability=="),
        (ACCEPTANCE, "MAJORITY_READ", "durability=="),
        (ACCEPTANCE, "PAYLOAD_HASH", "payload=="),
    ],
)
def test_control_without_a_guard_spin_finds_an_error(tmp_path, bounds, guard, failed):
    verdict = check(tmp_path, *bounds, f"WITHOUT_{guard}")
    assert verdict.errors == 1
    assert failed in verdict.failed


def test_control_without_expiry_a_delivery_never_ends(tmp_path):
    verdict = check(tmp_path, *ENDING, "WITHOUT_EXPIRY", formula="every_delivery_ends")
    assert verdict.errors == 1
    assert "acceptance cycle" in verdict.failed


def test_every_guard_of_a_model_has_a_control():
    models = "".join(path.read_text() for path in PROTOCOL.glob("*.pml"))
    tested = re.findall(r"\"([A-Z_]+)\", \"", Path(__file__).read_text())
    tested += re.findall(r"\"WITHOUT_([A-Z_]+)\"", Path(__file__).read_text())
    assert set(re.findall(r"WITHOUT_([A-Z_]+)", models)) <= set(tested)
