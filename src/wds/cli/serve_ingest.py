"""`python -m wds ingest`: one ingest service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds import ingest
from wds.cli import configuration
from wds.cli.service_runner import run_until_signal
from wds.telemetry import tracing

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping


def run(_: Namespace, environ: Mapping[str, str]) -> int:
    """Serve until a signal; return the exit status."""
    settings, sources = configuration.load(environ, require=("WDS_HMAC_SECRET", "WDS_MONGO_URL"))
    tracer = tracing.start(environ, role="ingest")
    return run_until_signal(lambda stop: ingest.serve(settings, sources, stop, tracer))
