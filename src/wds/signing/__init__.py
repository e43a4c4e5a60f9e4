"""Signature schemes: how each provider signs its webhooks, for verifying and for signing.

It may import `domain` only. It does no I/O and reads no clock: keys, headers, body and time are
arguments, and every signature comparison takes constant time.

To add a provider, copy `github.py` to a file of the provider's name, describe its signature there
as one `Scheme`, and add that scheme to `registry.py`. Configuration, verification, `wds send` and
the OpenAPI document then know it by its name. If the provider has headers worth storing with an
event, list them in `ingestion.event_parser.KEPT_HEADERS`.
"""
