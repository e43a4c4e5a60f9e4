"""`python -m wds dispatcher`: one dispatcher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds.cli.lean_imports import import_without
from wds.cli.service_runner import run_until_signal
from wds.config import Settings
from wds.domain.errors import SettingsError
from wds.telemetry import tracing

# OpenTelemetry's metrics are for redis's own, which are off.
import_without("redis.asyncio", "opentelemetry.sdk.metrics")
from wds import dispatcher  # noqa: E402

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping


def run(_: Namespace, environ: Mapping[str, str]) -> int:
    """Dispatch until a signal; return the exit status."""
    settings = Settings.load(environ, require=("WDS_MONGO_URL",))
    if settings.rate_limit and not settings.redis_url:
        raise SettingsError(["WDS_REDIS_URL is not set, and WDS_RATE_LIMIT is not 0"])
    tracer = tracing.start(environ, role="dispatcher")
    return run_until_signal(lambda stop: dispatcher.serve(settings, stop, tracer))
