"""The operators' console: HTML pages that show events and replay or cancel them, rendered here.

It may import `api` and every package below it; only `ingest` and the tests import it.
No page opens without a session or the rule for local clients, no form from another site does
anything, and hostile text stays text.
"""
