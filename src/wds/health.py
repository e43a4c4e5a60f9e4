"""Health of the process in this container: `python -m wds.health`, for HEALTHCHECK.

Asks `/healthz` on the port of an ingest service, a dispatcher and a mock in turn: a container
runs one of them, and one image serves all. Not a command of `python -m wds`, which would import
the drivers and the servers every few seconds to do the work of one request.
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


def check(environ: Mapping[str, str]) -> str | None:
    """Return the port's answer that shows life, or None if no port of this process does.

    Raises:
        SettingsError: the settings could not have started a process.
    """
    settings = Settings.load(environ)
    host = local_host(settings.host)
    for port in (settings.port, settings.metrics_port, settings.mock_port):
        if port and _lives(host, port):
            return f"{host}:{port}"
    return None


def _lives(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> int:
    """Return 0 if the process here answers, else 1; one line says which or why not."""
    try:
        where = check(os.environ)
    except SettingsError as error:
        print(f"unhealthy: {error}", file=sys.stderr)
        return 1
    if where is None:
        print("unhealthy: nothing answers /healthz", file=sys.stderr)
        return 1
    print(f"healthy: {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
