"""The totals of all replicas, and the catalogue of metrics."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from wds import __version__
from wds.telemetry import metrics
from wds.telemetry.metrics import ALL_REPLICAS_TOTALS, AllReplicasCollector

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def collector():
    return AllReplicasCollector()


@pytest.fixture
def value(collector):
    """Return a function that reads one sample of `collector` through a registry."""
    registry = CollectorRegistry()
    registry.register(collector)
    return registry.get_sample_value


def replica(role="dispatcher", silent_s=0.0, **totals):
    return {
        "owner": f"{role}-{silent_s}",
        "role": role,
        "seen_at": NOW - timedelta(seconds=silent_s),
        "totals": totals,
    }


@pytest.mark.parametrize("key", ALL_REPLICAS_TOTALS)
def test_collector_sums_the_totals_of_present_and_retired_replicas(collector, value, key):
    replicas = [replica(**{key: 3}), replica("ingest", **{key: 40})]
    collector.show({"now": NOW, "replicas": replicas, "retired": {key: 500}})
    assert value(f"wds_fleet_{key}_total") == 543
    assert (
        sum(value(f"wds_fleet_{other}_total") for other in ALL_REPLICAS_TOTALS if other != key) == 0
    )


def test_collector_keeps_the_totals_of_a_silent_replica(collector, value):
    replicas = [replica(silent_s=600, events_received=3), replica(events_received=4)]
    collector.show({"now": NOW, "replicas": replicas})
    assert value("wds_fleet_events_received_total") == 7


def test_collector_counts_replicas_heard_from_within_15_s_by_role(collector, value):
    replicas = [
        replica("ingest", 0),
        replica("dispatcher", 0),
        replica("dispatcher", 14.999),
        replica("dispatcher", 15),
        replica("ingest", 3600),
    ]
    collector.show({"now": NOW, "replicas": replicas, "retired": {}})
    assert value("wds_fleet_replicas", {"role": "ingest"}) == 1
    assert value("wds_fleet_replicas", {"role": "dispatcher"}) == 2


def test_collector_counts_0_for_a_role_without_replicas(collector, value):
    collector.show({"now": NOW, "replicas": [], "retired": {}})
    assert value("wds_fleet_replicas", {"role": "ingest"}) == 0
    assert value("wds_fleet_replicas", {"role": "dispatcher"}) == 0


@pytest.mark.parametrize("document", [None, {}], ids=["none", "empty"])
def test_collector_without_a_document_exposes_nothing(collector, document):
    assert list(collector.collect()) == []
    collector.show({"now": NOW, "replicas": [replica()]})
    assert len(list(collector.collect())) == 5
    collector.show(document)
    assert list(collector.collect()) == []


@pytest.mark.parametrize("key", ALL_REPLICAS_TOTALS)
def test_own_totals_are_the_counters_of_this_process(key):
    before = metrics.own_totals()
    ALL_REPLICAS_TOTALS[key][2].inc(3)
    after = metrics.own_totals()
    assert after == {**before, key: before[key] + 3}
    assert all(isinstance(total, int) for total in after.values())


def test_build_info_has_the_version():
    assert REGISTRY.get_sample_value("wds_build_info", {"version": __version__}) == 1


def test_metrics_all_have_a_description():
    ours = [family for family in REGISTRY.collect() if family.name.startswith("wds_")]
    assert len(ours) > 20
    assert all(family.documentation.endswith(".") for family in ours)


def test_metrics_have_no_creation_times():
    assert b"_created" not in generate_latest(REGISTRY)


@pytest.mark.parametrize("outcome", ["success", "failure", "unknown"])
def test_attempts_metric_starts_at_0_for_every_outcome(outcome):
    assert REGISTRY.get_sample_value("wds_attempts_total", {"outcome": outcome}) is not None


def test_expose_internal_errors_starts_every_route_at_0():
    metrics.expose_internal_errors(["/a", "/b"])
    for route in ("/a", "/b"):
        labels = {"route": route, "code": "internal_error"}
        assert REGISTRY.get_sample_value("wds_refusals_total", labels) == 0
