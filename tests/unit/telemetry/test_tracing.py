"""When tracing is on, by the standard variables, and what it is while it is off."""

from __future__ import annotations

import os

import pytest

from tests.support import new_event
from wds.domain.attempt_results import Delivered
from wds.domain.errors import SettingsError
from wds.telemetry import tracing


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Undo what `start` leaves in the process's environment for the SDK to read."""
    monkeypatch.setattr("os.environ", dict(os.environ))


COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "hooks", "OTEL_TRACES_SAMPLER": "always_on"}, False),
        (COLLECTOR, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": " OTLP "}, True),
        ({"OTEL_TRACES_EXPORTER": "", **COLLECTOR}, True),
        ({"OTEL_TRACES_EXPORTER": "none", **COLLECTOR}, False),
        ({"OTEL_TRACES_EXPORTER": "zipkin", **COLLECTOR}, False),
        ({"OTEL_SDK_DISABLED": "true", **COLLECTOR}, False),
        ({"OTEL_SDK_DISABLED": "True", "OTEL_TRACES_EXPORTER": "otlp"}, False),
        ({"OTEL_SDK_DISABLED": "false", **COLLECTOR}, True),
    ],
)
def test_is_on_follows_the_standard_variables(environ, on):
    assert tracing.is_on(environ) is on


def test_is_on_warns_of_an_exporter_that_wds_lacks(capsys):
    assert not tracing.is_on({"OTEL_TRACES_EXPORTER": "zipkin"})
    assert "OTEL_TRACES_EXPORTER must be otlp or none" in capsys.readouterr().out


def test_start_returns_off_without_variables():
    assert tracing.start({}, role="ingest") is tracing.OFF


@pytest.mark.parametrize("value", ["localhost:4318", "grpc://collector", "collector"])
@pytest.mark.parametrize("name", tracing.ENDPOINTS)
def test_start_refuses_a_malformed_address_by_name(name, value):
    with pytest.raises(SettingsError, match=f"{name}: must be a URL"):
        tracing.start({name: value}, role="ingest")


async def test_tracing_off_changes_and_records_nothing():
    events = [new_event(), new_event()]
    with tracing.OFF.enqueuing(events) as same, tracing.OFF.inserting(events):
        assert same is events
    assert (tracing.OFF.middlewares, tracing.OFF.stop_s) == ((), 0)
    with tracing.OFF.delivery(None, limited=True) as trace:
        assert (trace.facts, trace.sent()) == ({}, {})
        trace.answered(Delivered(sent_at=0.0, duration_ms=1, status_code=200))
        trace.settled("DELIVERED")
    await tracing.OFF.stop()


def test_start_warns_of_an_unsupported_protocol_and_uses_http(capsys, monkeypatch):
    made = []
    monkeypatch.setattr(
        "wds.telemetry.opentelemetry_tracer.Recorder", lambda role: made.append(role) or tracing.OFF
    )
    for name in tracing.PROTOCOLS:
        tracing.start({**COLLECTOR, name: "grpc"}, role="ingest")
        assert "wanted=grpc" in capsys.readouterr().out.replace("'", "")
    tracing.start({**COLLECTOR, tracing.PROTOCOLS[1]: "http/protobuf"}, role="ingest")
    assert capsys.readouterr().out == ""
    assert made == ["ingest"] * 3
