"""HTTP below the routes: server, connections, bodies, errors, access of operators, OpenAPI.

It may import `telemetry`, `config`, `encoding` and `domain`, never `storage`. Every error leaves
it in the one envelope, every route is guarded unless it is listed as public, and the memory of
request bodies is bounded. `aiohttp_private.py` alone uses private names of aiohttp.
"""
