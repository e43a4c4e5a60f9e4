"""Replay and cancel: what the HTTP API and the console share, and the worker for bulk actions.

It may import storage and telemetry, and does not know about HTTP requests. What must stay true: an
action is logged and counted once, by the request that carried it out.
"""
