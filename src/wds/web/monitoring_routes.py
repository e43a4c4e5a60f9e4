"""The routes of health and metrics, described for the OpenAPI document of a service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds.web.monitoring import healthz, metrics_page, readyz
from wds.web.openapi import Operation
from wds.web.schemas import HealthSchema

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wds.web.monitoring import Check


def operations(checks: Mapping[str, Check], *, ready: str) -> list[Operation]:
    """Return the routes; `ready` is the question that `/readyz` answers."""
    yes = {200: ("Yes", HealthSchema)}
    return [
        Operation(
            "GET",
            "/metrics",
            metrics_page,
            "Prometheus metrics",
            "watch",
            {200: ("Prometheus's text format", None)},
            produces=("text/plain", "application/openmetrics-text"),
        ),
        Operation("GET", "/healthz", healthz, "Is it alive?", "watch", yes),
        Operation(
            "GET", "/readyz", readyz(checks), ready, "watch", {**yes, 503: ("No", HealthSchema)}
        ),
    ]
