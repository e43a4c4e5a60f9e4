"""The upper bound of ingest: an aiohttp handler that verifies the HMAC and stores nothing.

`python -m benchmarks.bare_handler PORT`
"""

from __future__ import annotations

import os
import sys

from aiohttp import web

from wds.signing.hmac_sha256 import verify

SECRETS = tuple(os.environ["WDS_HMAC_SECRET"].split())


async def ingest(request: web.Request) -> web.Response:
    """Answer 202 if the signature is valid, else 401."""
    body = await request.read()
    if not verify(SECRETS, body, request.headers["X-Hub-Signature-256"]):
        raise web.HTTPUnauthorized
    return web.json_response({"status": "RECEIVED"}, status=202)


def main() -> None:
    """Serve until terminated."""
    app = web.Application(client_max_size=1024 * 1024)
    app.router.add_post("/webhooks/ingest", ingest)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
