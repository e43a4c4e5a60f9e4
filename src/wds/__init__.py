"""wds: a webhook delivery system whose durable queue is MongoDB.

ARCHITECTURE.md explains the protocol; each module says what it guarantees.
"""

__version__ = "0.1.0"
