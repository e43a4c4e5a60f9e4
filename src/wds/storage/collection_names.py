"""The collections of the database, and which module writes to each."""

from __future__ import annotations

EVENTS = "events"
"""One document per event: `event_documents`."""
FLEET = "fleet"
"""One document, with what every replica last reported: `replicas`."""
LOGOUTS = "logouts"
"""One document per session that was ended early: `revoked_sessions`."""
