"""Settings: defaults, ranges, and errors by the name of the setting."""

from __future__ import annotations

import base64
import dataclasses

import pytest

from wds.config import MAX_BODY_BYTES, SLOT_WAIT_S, Settings, unknown_names
from wds.domain.errors import SettingsError

SPECS = {f.metadata["env"]: f for f in dataclasses.fields(Settings)}


def problems(*, require=(), **environ):
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ, require=require)
    return caught.value.problems


def test_settings_of_an_empty_environment_are_the_defaults():
    assert Settings.load({}) == Settings()


def test_settings_have_the_documented_defaults():
    settings = Settings.load({})
    assert (settings.host, settings.port, settings.metrics_port) == ("127.0.0.1", 8000, 9101)
    assert settings.downstream_url == "http://127.0.0.1:8001/downstream/receive"
    assert (settings.rate_limit, settings.max_attempts) == (3, 5)
    assert settings.backoff == (1, 2, 4, 8, 16)
    assert (settings.request_timeout, settings.lease, settings.poll_interval) == (10, 30, 0.05)
    assert (settings.concurrency, settings.max_body_bytes) == (128, 1024**2)
    assert (settings.mongo_db, settings.mongo_url, settings.redis_url) == ("wds", None, None)
    assert (settings.operator_token, settings.operator_open) == (None, False)
    assert (settings.mock_port, settings.mock_rate_limit) == (8001, 3)
    assert (settings.mock_failure_rate, settings.mock_seed) == (0.15, None)


@pytest.mark.parametrize("name", SPECS)
def test_load_accepts_every_default(name):
    default = SPECS[name].default
    text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    if default not in (None, ()):
        assert Settings.load({name: text}) == Settings()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("value", ["", "  ", "\t\n"], ids=ascii)
def test_load_takes_an_empty_value_as_unset(name, value):
    assert Settings.load({name: value}) == Settings()
    assert problems(require=(name,), **{name: value}) == [f"{name} is not set"]


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("WDS_HMAC_SECRET", "one", "hmac_secrets", ("one",)),
        ("WDS_HMAC_SECRET", " new \t old\n", "hmac_secrets", ("new", "old")),
        (
            "WDS_MONGO_URL",
            "mongodb://a,b/?replicaSet=r",
            "mongo_url",
            "mongodb://a,b/?replicaSet=r",
        ),
        ("WDS_MONGO_URL", "mongodb+srv://u:p@h/", "mongo_url", "mongodb+srv://u:p@h/"),
        ("WDS_REDIS_URL", "rediss://h:1/0", "redis_url", "rediss://h:1/0"),
        ("WDS_DOWNSTREAM_URL", "https://h/p?q", "downstream_url", "https://h/p?q"),
        ("WDS_BACKOFF", "0", "backoff", (0.0,)),
        ("WDS_BACKOFF", " 1 , 2.5,4 ", "backoff", (1.0, 2.5, 4.0)),
        ("WDS_RATE_LIMIT", "0", "rate_limit", 0),
        ("WDS_RATE_LIMIT", "100000", "rate_limit", 100_000),
        ("WDS_METRICS_PORT", "0", "metrics_port", 0),
        ("WDS_PORT", "65535", "port", 65535),
        ("WDS_MAX_BODY_BYTES", str(MAX_BODY_BYTES), "max_body_bytes", MAX_BODY_BYTES),
        ("WDS_OPERATOR_OPEN", "true", "operator_open", True),
        ("WDS_OPERATOR_OPEN", "Yes", "operator_open", True),
        ("WDS_LISTEN", "0", "listen", False),
        ("WDS_LISTEN", "off", "listen", False),
        ("WDS_LEASE", "1e3", "lease", 1000.0),
        ("WDS_OPERATOR_OPEN", "false", "operator_open", False),
        (
            "WDS_OPERATOR_HOSTS",
            " a.example  b.example",
            "operator_hosts",
            ("a.example", "b.example"),
        ),
        ("WDS_MOCK_FAILURE_RATE", "0", "mock_failure_rate", 0.0),
        ("WDS_MOCK_FAILURE_RATE", "1", "mock_failure_rate", 1.0),
        ("WDS_MOCK_SEED", "0", "mock_seed", 0),
    ],
)
def test_load_reads_a_valid_value(name, value, field, expected):
    assert getattr(Settings.load({name: value}), field) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WDS_MONGO_URL", "http://h/"),
        ("WDS_MONGO_URL", "mongodb://"),
        ("WDS_MONGO_URL", "mongodb://[::1"),
        ("WDS_REDIS_URL", "localhost:6379"),
        ("WDS_DOWNSTREAM_URL", "ftp://h/"),
        ("WDS_DOWNSTREAM_URL", "/downstream/receive"),
        ("WDS_MONGO_DB", "a.b"),
        ("WDS_MONGO_DB", "$cmd"),
        ("WDS_MONGO_DB", "a" * 39),
        ("WDS_BACKOFF", "1,,2"),
        ("WDS_BACKOFF", "1,"),
        ("WDS_BACKOFF", "-1"),
        ("WDS_BACKOFF", "1;2"),
        ("WDS_BACKOFF", "nan"),
        ("WDS_BACKOFF", "1e3"),
        ("WDS_BACKOFF", "9" * 400),
        ("WDS_BACKOFF", "1,604801"),
        ("WDS_BACKOFF", "\u0663"),
        ("WDS_PORT", "8_000"),
        ("WDS_PORT", "\u0663"),
        ("WDS_MONGO_DB", "a\n"),
        ("WDS_MONGO_DB", "admin"),
        ("WDS_HMAC_SECRET", "\udcff"),
        ("WDS_OPERATOR_TOKEN", "two words"),
        ("WDS_OPERATOR_TOKEN", " padded "),
        ("WDS_OPERATOR_TOKEN", "\udcff"),
        ("WDS_DOWNSTREAM_URL", "http://:80"),
        ("WDS_DOWNSTREAM_URL", "http://h:abc/"),
        ("WDS_DOWNSTREAM_URL", "http://h:99999/"),
        ("WDS_DOWNSTREAM_URL", "http://a b/"),
        ("WDS_RATE_LIMIT", "-1"),
        ("WDS_RATE_LIMIT", "100001"),
        ("WDS_RATE_LIMIT", "three"),
        ("WDS_RATE_LIMIT", "2.5"),
        ("WDS_MAX_ATTEMPTS", "0"),
        ("WDS_REQUEST_TIMEOUT", "0"),
        ("WDS_REQUEST_TIMEOUT", "nan"),
        ("WDS_REQUEST_TIMEOUT", "inf"),
        ("WDS_LEASE", "0"),
        ("WDS_POLL_INTERVAL", "0"),
        ("WDS_CONCURRENCY", "0"),
        ("WDS_PORT", "0"),
        ("WDS_PORT", "65536"),
        ("WDS_PORT", "9" * 5_000),
        ("WDS_METRICS_PORT", "-1"),
        ("WDS_MAX_BODY_BYTES", "0"),
        ("WDS_MAX_BODY_BYTES", str(MAX_BODY_BYTES + 1)),
        ("WDS_BODY_TIMEOUT", "0"),
        ("WDS_BODY_MEMORY", "1000"),
        ("WDS_DOWNSTREAM_SECRET", "a plain secret"),
        ("WDS_DOWNSTREAM_SECRET", "whsec_dG9vIHNob3J0"),
        ("WDS_DOWNSTREAM_SECRET", "whpk_" + "A" * 43 + "="),
        ("WDS_OPERATOR_OPEN", "maybe"),
        ("WDS_MOCK_FAILURE_RATE", "1.1"),
        ("WDS_MOCK_FAILURE_RATE", "-0.1"),
        ("WDS_MOCK_SEED", "-1"),
    ],
    ids=lambda text: ascii(text[:24]),
)
def test_load_refuses_an_invalid_value_by_the_name_of_its_setting(name, value):
    [problem] = problems(**{name: value})
    assert problem.startswith(f"{name}: ")


def test_load_reports_all_problems_at_once():
    found = problems(
        require=("WDS_HMAC_SECRET", "WDS_MONGO_URL"), WDS_PORT="x", WDS_LEASE="y", WDS_BACKOFF="z"
    )
    assert sorted(problem.partition(":")[0].split()[0] for problem in found) == [
        "WDS_BACKOFF",
        "WDS_HMAC_SECRET",
        "WDS_LEASE",
        "WDS_MONGO_URL",
        "WDS_PORT",
    ]


def test_settings_error_has_every_problem_in_one_line():
    error = SettingsError(["A: is wrong", "B is not set"])
    assert str(error) == "A: is wrong; B is not set"


@pytest.mark.parametrize(
    ("environ", "good"),
    [
        pytest.param({"WDS_LEASE": "11.7"}, False, id="exactly_timeout_slot_and_margin"),
        pytest.param({"WDS_LEASE": "11.71"}, True, id="just_longer"),
        pytest.param({"WDS_REQUEST_TIMEOUT": "40"}, False, id="timeout_beyond_the_lease"),
        pytest.param({"WDS_LEASE": "10.6", "WDS_RATE_LIMIT": "0"}, True, id="no_slot_to_wait_for"),
        pytest.param({"WDS_LEASE": "10.5", "WDS_RATE_LIMIT": "0"}, False, id="timeout_and_margin"),
    ],
)
def test_load_requires_a_lease_longer_than_the_request_and_the_slot_wait(environ, good):
    if good:
        Settings.load(environ)
    else:
        [problem] = problems(**environ)
        assert "WDS_LEASE" in problem and "WDS_REQUEST_TIMEOUT" in problem


def test_load_requires_body_memory_for_two_bodies_of_the_largest_size():
    [problem] = problems(WDS_MAX_BODY_BYTES="1000000", WDS_BODY_MEMORY="1999999")
    assert "WDS_BODY_MEMORY" in problem and "WDS_MAX_BODY_BYTES" in problem


def test_slot_wait_is_zero_without_a_rate_limit():
    assert Settings(rate_limit=3).slot_wait == SLOT_WAIT_S
    assert Settings(rate_limit=0).slot_wait == 0


SECRETS = [name for name, spec in SPECS.items() if spec.metadata["secret"]]


def test_settings_that_can_hold_a_credential_are_marked_secret():
    assert {
        "WDS_HMAC_SECRET",
        "WDS_MONGO_URL",
        "WDS_REDIS_URL",
        "WDS_DOWNSTREAM_URL",
        "WDS_DOWNSTREAM_SECRET",
        "WDS_OPERATOR_TOKEN",
    } == set(SECRETS)


@pytest.mark.parametrize("name", SECRETS)
def test_settings_show_no_secret_in_their_repr_or_in_an_error(name):
    schemes = {"WDS_MONGO_URL": "mongodb", "WDS_REDIS_URL": "redis", "WDS_DOWNSTREAM_URL": "http"}
    good = f"{schemes.get(name, 'x')}://user:hunter2@h/"
    if name == "WDS_DOWNSTREAM_SECRET":
        good = f"whsec_{base64.b64encode(b'hunter2' * 4).decode()}"
        assert good not in repr(Settings.load({name: good}))
        assert "hunter2" not in str(problems(**{name: "whsec_hunter2"}))
        return
    assert "hunter2" not in repr(Settings.load({name: good}))
    if name in schemes:
        for bad in ("gopher://user:hunter2@h/", "gopher://user:hunter2@[h/"):
            assert "hunter2" not in str(problems(**{name: bad}))


@pytest.mark.parametrize("name", SPECS)
def test_settings_all_have_a_description(name):
    assert name.startswith("WDS_")
    assert SPECS[name].metadata["doc"].endswith(".")


def test_unknown_names_finds_misspelt_names_and_ignores_other_programs():
    environ = {"WDS_RATELIMIT": "3", "WDS_PORT": "1", "PATH": "/bin", "wds_port": "2", "WDS_": "1"}
    assert unknown_names(environ) == ["WDS_", "WDS_RATELIMIT"]
    assert unknown_names(dict.fromkeys(SPECS, "1")) == []
