"""The HTTP API for operators: its routes, handlers and JSON shapes for events and actions.

It may import actions, ingestion, web and storage; the console builds on it. What must stay true: a
page, its counts and an export with the same filter concern the same events.
"""
