"""Delivery of events to one destination: when to poll, how fast to send, one HTTP request.

May import `web`, `storage`, `telemetry`, `config` and everything below them; the dispatcher imports
it. A request leaves only under a lease that is still trusted and inside its slot of the rate limit.
"""
