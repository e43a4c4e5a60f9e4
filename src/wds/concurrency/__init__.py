"""Building blocks for asyncio that know nothing of events: group commit, background work, signals.

May import `domain.errors` and nothing else of the package. Cancelling one caller never loses the
work of another.
"""
