"""MongoDB: the lease queue, writing and reading events, operator actions, rollups.

Imports `domain`, `concurrency`, `encoding` and the MongoDB drivers, which no other package may use.
Every write is confirmed by a majority and journaled, each state change is one write to one
document, and a failure that outlasts the retries is `StoreUnavailableError`.
"""
