"""Each step of the checked model exists, and so does the function that does it."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol"
MODELS = "".join(path.read_text() for path in sorted(PROTOCOL.glob("*.pml")))
README = (PROTOCOL / "README.md").read_text()
STEPS = re.findall(r"^\| `(\w+)` \| `(wds\.[\w.]+)` \|$", README, re.MULTILINE)


def is_step(name: str) -> bool:
    """Tell whether a model has an inline or a label of this name."""
    return bool(re.search(rf"^(?:inline {name}\(|{name}:)", MODELS, re.MULTILINE))


@pytest.mark.parametrize(("step", "function"), STEPS)
def test_each_step_of_the_map_is_in_a_model_and_in_the_code(step, function):
    assert is_step(step)
    assert callable(pkgutil.resolve_name(function))


def test_the_map_has_every_label_at_which_a_process_makes_a_step():
    labels = set(re.findall(r"^(\w+): /\*", MODELS, re.MULTILINE))
    # The others stand for a wait, a crash or an answer that changes nothing.
    others = {label for label in labels if label.startswith(("end_", "answer_"))} | {"commit"}
    assert labels - others - {"crashed"} <= {step for step, _ in STEPS}


def test_control_a_step_or_a_function_that_is_gone_is_noticed():
    assert len(STEPS) >= 15
    assert not is_step("no_such_step")
    with pytest.raises(AttributeError):
        pkgutil.resolve_name("wds.storage.lease_queries.no_such_function")


def test_the_readme_names_exactly_the_guards_that_can_be_taken_out():
    listed = set(re.findall(r"^\| `(WITHOUT_[A-Z_]+)` \|", README, re.MULTILINE))
    assert listed == set(re.findall(r"WITHOUT_[A-Z_]+", MODELS))
