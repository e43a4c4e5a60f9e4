"""wds: a webhook delivery system whose durable queue is MongoDB.

Start reading at `ingest` (receive and store an event), `dispatcher` (claim and deliver it) and
`storage.lease_queue` (the queue between the two). ARCHITECTURE.md explains the protocol and lists
the packages.
"""

__version__ = "0.1.0"
