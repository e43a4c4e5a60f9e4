"""Every metric: its name, labels and meaning. No other module names one.

To add a metric: define it in its section below, and add its row to the table of metrics in
`docs/operations.md`, which a test compares with this module. Count what happens to an event in
`event_log`, anything else where it happens.

There is one registry in a process. The counters are this process's own. The totals of all
replicas (`ALL_REPLICAS_TOTALS`) come from the heartbeat document through `all_replicas`; a scrape
never counts events. In the names of metrics, `fleet` means all replicas.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import prometheus_client
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from wds import __version__
from wds.domain.deliveries import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

_labels: dict[MetricWrapperBase, tuple[str, ...]] = {}
_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


def _labelled(kind: Callable[..., _Metric], name: str, meaning: str, *labels: str) -> _Metric:
    """Create a metric with `labels`. They are kept because the library has no way to read them."""
    metric = kind(name, meaning, labels)
    _labels[metric] = labels
    return metric


_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

BUILD_INFO = _labelled(Gauge, "wds_build_info", "Always 1; the version is the label.", "version")
BUILD_INFO.labels(__version__).set(1)

# ingest
EVENTS_RECEIVED = Counter("wds_events_received_total", "Events stored and acknowledged.")
EVENTS_REPEATED = Counter(
    "wds_events_repeated_total", "Repeats of an idempotency key, acknowledged and not stored again."
)
REFUSALS = _labelled(
    Counter, "wds_refusals_total", "Requests answered with an error envelope.", "route", "code"
)
SIGNATURES_VERIFIED = _labelled(
    Counter,
    "wds_signatures_verified_total",
    "Requests whose signature is valid, by source and by the secret's place in its list, 1 first.",
    "source",
    "secret",
)
BODY_BYTES = Gauge("wds_body_bytes", "Bytes of request bodies held now, of WDS_BODY_MEMORY.")
INGEST_SECONDS = Histogram(
    "wds_ingest_seconds", "From reading an ingest request to its answer.", buckets=_LATENCY
)
COMMIT_SECONDS = Histogram(
    "wds_commit_seconds", "One group commit of new events.", buckets=_LATENCY
)
COMMIT_EVENTS = Histogram(
    "wds_commit_events",
    "New events in one group commit.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)

# operators
OPERATOR_REFUSALS = _labelled(
    Counter,
    "wds_operator_refusals_total",
    "Requests to operators' routes that were refused.",
    "reason",
)
EVENTS_CHANGED = _labelled(
    Counter, "wds_events_changed_total", "Events that operators replayed or cancelled.", "action"
)

# delivery
ATTEMPTS = _labelled(
    Counter, "wds_attempts_total", "Attempts that were recorded, by outcome.", "outcome"
)
for _outcome in Outcome:  # expose each at 0, so that the first attempt is an increase
    ATTEMPTS.labels(_outcome)
DELIVERIES_SUCCEEDED = Counter("wds_deliveries_succeeded_total", "Events that became DELIVERED.")
DELIVERIES_FAILED = Counter(
    "wds_deliveries_failed_total", "Events that became FAILED_PERMANENTLY, but for cancelled ones."
)
RETRY_ATTEMPTS = Counter("wds_retry_attempts_total", "Attempts after an event's first.")
ATTEMPT_SECONDS = Histogram(
    "wds_attempt_seconds", "One request to the downstream, to the end of its answer."
)
IN_FLIGHT = Gauge("wds_deliveries_in_flight", "Requests to the downstream now under way.")
SLOT_WAITING = Gauge("wds_slot_waiting", "Claimed events that wait for a slot of the rate limit.")
SLOT_WAIT_SECONDS = Histogram(
    "wds_slot_wait_seconds", "From claiming an event to its slot.", buckets=_LATENCY
)
SLOTS_MISSED = Counter(
    "wds_slots_missed_total", "Slots that could not be used in time and were given back."
)
CLAIMS = Counter("wds_claims_total", "Leases taken on due events.")
CLAIMS_DEFERRED = Counter(
    "wds_claims_deferred_total", "Leases released without an attempt; no attempt is counted."
)
LEASES_LOST = Counter(
    "wds_leases_lost_total", "Outcomes refused because the lease had passed to another."
)
LEASES_RECOVERED = Counter(
    "wds_leases_recovered_total", "Expired leases taken over; their attempt is recorded as unknown."
)

# state
DUE_EVENTS = Gauge("wds_due_events", "Events due now (counted up to 100,000).")
OLDEST_DUE_SECONDS = Gauge("wds_oldest_due_seconds", "Age of the oldest due event, 0 if none.")
STORE_UP = Gauge("wds_store_up", "1 while MongoDB answers.")
LIMITER_UP = Gauge("wds_limiter_up", "1 while Redis answers, or while there is no rate limit.")

ALL_REPLICAS_TOTALS: Mapping[str, tuple[str, str, Counter]] = {
    "events_received": (
        "wds_fleet_events_received",
        "Events received, all replicas, past ones included.",
        EVENTS_RECEIVED,
    ),
    "deliveries_succeeded": (
        "wds_fleet_deliveries_succeeded",
        "Successful deliveries, all replicas, past ones included.",
        DELIVERIES_SUCCEEDED,
    ),
    "deliveries_failed": (
        "wds_fleet_deliveries_failed",
        "Events that failed permanently, all replicas, past ones included.",
        DELIVERIES_FAILED,
    ),
    "retry_attempts": (
        "wds_fleet_retry_attempts",
        "Attempts after the first, all replicas, past ones included.",
        RETRY_ATTEMPTS,
    ),
}
"""Totals of all replicas: key in a heartbeat -> metric name without `_total`, its meaning, this
process's counter."""


def expose_internal_errors(routes: Iterable[str]) -> None:
    """Expose the internal errors of each route at 0, so that the first one is an increase."""
    for route in routes:
        REFUSALS.labels(route, "internal_error")


def own_totals() -> dict[str, int]:
    """Return the share of this process in the totals of all replicas."""
    return {
        key: int(sum(sample.value for family in counter.collect() for sample in family.samples))
        for key, (_, _, counter) in ALL_REPLICAS_TOTALS.items()
    }


ROLES = ("ingest", "dispatcher")
ALIVE_WITHIN = timedelta(seconds=15)
"""A replica counts as alive for this long after its last heartbeat."""


class AllReplicasCollector(Collector):
    """Exposes the totals of all replicas, and their number, from the last heartbeat document."""

    def __init__(self) -> None:
        """Start without a document. No metric is exposed until there is one."""
        self._document: Mapping[str, Any] | None = None

    def show(self, document: Mapping[str, Any] | None) -> None:
        """Replace the document with what `storage.replicas` returns; None hides the metrics."""
        self._document = document

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering does not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the totals of all replicas and the number of replicas by role."""
        if not self._document:
            return
        replicas = self._document.get("replicas", [])
        retired = self._document.get("retired", {})
        for key, (name, meaning, _) in ALL_REPLICAS_TOTALS.items():
            total = retired.get(key, 0) + sum(each["totals"].get(key, 0) for each in replicas)
            yield CounterMetricFamily(name, meaning, value=total)
        by_role = GaugeMetricFamily(
            "wds_fleet_replicas", "Replicas heard from in the last 15 seconds.", labels=["role"]
        )
        alive = [
            each["role"]
            for each in replicas
            if self._document["now"] - each["seen_at"] < ALIVE_WITHIN
        ]
        for role in ROLES:
            by_role.add_metric([role], alive.count(role))
        yield by_role


all_replicas = AllReplicasCollector()
REGISTRY.register(all_replicas)


def catalogue() -> list[tuple[Metric, tuple[str, ...]]]:
    """Return every metric of this package and its labels, to compare with the documents."""
    metrics = []
    for each in globals().values():
        if isinstance(each, MetricWrapperBase):
            metrics += [(family, _labels.get(each, ())) for family in each.describe()]
    collector = AllReplicasCollector()
    collector.show({"now": datetime.now(UTC), "replicas": []})
    for family in collector.collect():
        labels = {name for sample in family.samples for name in sample.labels}
        metrics.append((family, tuple(sorted(labels))))
    return metrics
