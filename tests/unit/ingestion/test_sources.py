"""Sources: reading the file, reporting its mistakes, and locating event type and key."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from multidict import CIMultiDict

from tests.senders import STANDARD_SECRET
from wds.domain.errors import Refusal, SettingsError
from wds.ingestion import sources
from wds.ingestion.sources import Location
from wds.signing.registry import SCHEMES
from wds.signing.scheme import Proof

ROOT = Path(__file__).parents[3]
PROOF = Proof(0, "the signature")


def load(text, **environ):
    return sources.load(text, environ, "wds.toml")


def problems(text, **environ):
    with pytest.raises(SettingsError) as caught:
        load(text, **environ)
    return caught.value.problems


def test_example_file_has_a_source_of_every_provider():
    found = sources.load((ROOT / "wds.example.toml").read_text(), {}, "wds.example.toml")
    assert {source.scheme.name for source in found.values()} == set(SCHEMES) - {"wds"}
    assert all(name == source.name for name, source in found.items())


def test_example_file_is_valid_in_its_commented_part():
    text = (ROOT / "wds.example.toml").read_text()
    commented = text[text.index("# [sources.billing]") :]
    lines = "\n".join(line.removeprefix("# ") for line in commented.splitlines())
    assert tomllib.loads(lines)["sources"]["billing"]
    billing = sources.load(lines, {"BILLING_SECRETS": "new old"}, "x")["billing"]
    assert billing.keys == (b"new", b"old")
    assert billing.event_type == (Location("header", "X-Kind"), Location("body", "data.kind"))
    assert billing.idempotency_key == (Location("body", "invoice.id"),)


def test_load_returns_no_sources_for_an_empty_file():
    assert load("") == {}


def test_load_puts_secrets_of_the_file_before_those_of_the_environment():
    found = load(
        '[sources.a]\nscheme = "slack"\nsecrets = ["new one"]\nsecrets_from = "OLD"',
        OLD=" older  oldest ",
    )
    assert found["a"].keys == (b"new one", b"older", b"oldest")


def test_source_repr_does_not_show_its_secrets():
    found = load('[sources.a]\nscheme = "slack"\nsecrets = ["hunter2"]')
    assert "hunter2" not in repr(found)


GOOD = 'secrets = ["s"]'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[sources.a]\nsecrets = ["s"]', "wds.toml line 1: sources.a.scheme is missing"),
        (f'[sources.a]\n{GOOD}\nscheme = "gitlab"', "line 3: sources.a.scheme is unknown"),
        (f"[sources.a]\n{GOOD}\nscheme = 7", "line 3: sources.a.scheme is unknown"),
        (f'[sources.a]\n{GOOD}\nscheme = "GitHub"', "line 3: sources.a.scheme is unknown"),
        ('[sources.a]\nscheme = "wds"', "line 1: sources.a has no secret"),
        ('[sources.a]\nscheme = "wds"\nsecrets = []', "line 1: sources.a has no secret"),
        ('[sources.a]\nscheme = "wds"\nsecrets = "s"', "line 3: sources.a.secrets must be a list"),
        ('[sources.a]\nscheme = "wds"\nsecrets = [""]', "line 3: sources.a.secrets must be a"),
        ('[sources.a]\nscheme = "wds"\nsecrets = [1]', "line 3: sources.a.secrets must be a"),
        (
            '[sources.a]\nscheme = "wds"\nsecrets = ["s", "s"]',
            "line 3: sources.a.secrets number 2 repeats an earlier one",
        ),
        (
            '[sources.a]\nscheme = "wds"\nsecrets_from = "NOT_SET"',
            "line 3: sources.a.secrets_from names NOT_SET, which is not set",
        ),
        (
            '[sources.a]\nscheme = "wds"\nsecrets_from = "A B"',
            "line 3: sources.a.secrets_from must be the name of one variable",
        ),
        (
            '[sources.a]\nscheme = "standard"\nsecrets = ["hunter2"]',
            "line 3: sources.a.secrets number 1 must be whsec_",
        ),
        (
            f'[sources.a]\nscheme = "wds"\n{GOOD}\nsecret = "x"',
            "line 4: sources.a.secret is not one",
        ),
        (
            f'[sources.a]\nscheme = "wds"\n{GOOD}\ntolerance = 10',
            "line 4: sources.a.tolerance has no effect",
        ),
        *(
            (
                f'[sources.a]\nscheme = "slack"\n{GOOD}\ntolerance = {value}',
                "line 4: sources.a.tolerance must be 1 to 86400 seconds",
            )
            for value in ("0", "-1", "86401", "true", '"300"', "nan", "inf")
        ),
        *(
            (
                f'[sources.a]\nscheme = "wds"\n{GOOD}\nevent_type = {value}',
                "line 4: sources.a.event_type must be header:NAME",
            )
            for value in ('"x"', '"header:"', '"body:"', '"body:a..b"', "[]", "[1]", '"header:a b"')
        ),
        (f'[sources.default]\nscheme = "wds"\n{GOOD}', "line 1: sources.default is what WDS_HMAC"),
        (f'[sources.batch]\nscheme = "wds"\n{GOOD}', "line 1: sources.batch is a route"),
        (f'[sources."a/b"]\nscheme = "wds"\n{GOOD}', "sources.a/b is not a name"),
        (f'[sources.""]\nscheme = "wds"\n{GOOD}', "is not a name"),
        (f"[sources.{'a' * 65}]\nscheme = 'wds'\n{GOOD}", "is not a name"),
        ("[sources]\na = 1", "sources.a must be a table"),
        ("sources = 1", "wds.toml: sources must be tables"),
        (f'[source.a]\nscheme = "wds"\n{GOOD}', "wds.toml line 1: source is not allowed here"),
        ("[sources.a]\nscheme =", "wds.toml: not TOML: "),
        ("[sources.a]\nscheme = wds", "at line 2, column 10"),
    ],
)
def test_load_reports_a_mistake_with_its_line(text, expected):
    found = problems(text)
    assert any(expected in problem for problem in found), found
    assert all(problem.startswith("wds.toml") for problem in found)
    assert "hunter2" not in str(found)


def test_load_reports_every_mistake_of_every_source():
    found = problems(
        """
        colour = "red"
        [sources.a]
        scheme = "nope"
        [sources.b]
        scheme = "stripe"
        tolerance = 0
        [sources.c]
        scheme = "standard"
        secrets = ["x", "y"]
        """
    )
    assert [each.split(": ", 1)[1].split(" ")[0] for each in found] == [
        "colour",
        "sources.a.scheme",
        "sources.a",
        "sources.b",
        "sources.b.tolerance",
        "sources.c.secrets",
        "sources.c.secrets",
    ]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("header:x-kind", "h"),
        ("header:X-Other", None),
        ("body:a", {"b": {"c": 1}}),
        ("body:a.b.c", 1),
        ("body:a.b.c.d", None),
        ("body:a.x", None),
        ("body:list.0", None),
        ("signature", "the signature"),
    ],
)
def test_location_returns_the_value_it_names(place, expected):
    body = {"a": {"b": {"c": 1}}, "list": [1]}
    headers = CIMultiDict({"X-Kind": "h"})
    assert Location.parse(place).value(body, headers, PROOF) == expected


def test_location_refuses_a_repeated_header():
    headers = CIMultiDict([("X-Kind", "a"), ("X-Kind", "a")])
    with pytest.raises(Refusal):
        Location.parse("header:X-Kind").value({}, headers, PROOF)


@pytest.mark.parametrize("name", SCHEMES)
def test_source_trusts_only_a_key_that_its_scheme_signs(name):
    text = f'[sources.a]\nscheme = "{name}"\nsecrets = ["{STANDARD_SECRET}"]\n'
    assert load(text)["a"].signs_idempotency_key == (name in {"stripe", "slack", "standard"})
    assert not load(text + 'idempotency_key = "header:X-Id"')["a"].signs_idempotency_key
