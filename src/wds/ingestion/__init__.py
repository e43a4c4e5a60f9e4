"""From a verified request to durable events: sources, payloads, handlers and their routes.

It may import `web`, `telemetry`, `concurrency`, `signing`, `encoding` and `domain`; it stores
through a protocol and never imports `storage`. A sender is answered 2xx only after the write of
its events is majority-committed and journaled, and its bytes are never changed.
"""
