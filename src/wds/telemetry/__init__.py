"""Metrics, log lines, traces and heartbeats: how operators observe the processes.

May import `config`, `concurrency`, `encoding` and `domain`, and neither `storage` nor `delivery`:
it declares the parts of them that it needs as Protocols. Every metric is named in `metrics` and
nowhere else, and telemetry that fails never stops ingest or delivery.
"""
