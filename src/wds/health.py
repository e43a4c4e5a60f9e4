"""Health of the process in this container: `python -m wds.health`, for HEALTHCHECK.

Asks `/healthz` on the port of an ingest service, a dispatcher and a mock in turn: a container
runs one of them, and one image serves all. It is not a command of `python -m wds`, because it runs
every few seconds and one request needs no HTTP library.
"""

from __future__ import annotations

import http.client
import os
import sys
from typing import TYPE_CHECKING

from wds.config import Settings, local_host
from wds.domain.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT_S = 2.0


def healthy_address(environ: Mapping[str, str]) -> str | None:
    """Return HOST:PORT of the first port that answers 200 to `/healthz`, None if none does.

    Raises:
        SettingsError: no process could have started with these settings.
    """
    settings = Settings.load(environ)
    host = local_host(settings.host)
    for port in (settings.port, settings.metrics_port, settings.mock_port):
        if port and _is_healthy(host, port):
            return f"{host}:{port}"
    return None


def _is_healthy(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> int:
    """Return 0 if the process here is healthy, else 1, and print one line that says why."""
    try:
        address = healthy_address(os.environ)
    except SettingsError as error:
        print(f"unhealthy: {error}", file=sys.stderr)
        return 1
    if address is None:
        print("unhealthy: no port answers /healthz", file=sys.stderr)
        return 1
    print(f"healthy: {address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
