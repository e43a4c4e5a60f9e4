"""Replay and cancel: the service that the HTTP API and the console share, and the bulk worker.

It may import storage and telemetry, and does not know about HTTP requests. What must stay true: an
action is logged and counted once, by the request that carried it out.
"""
