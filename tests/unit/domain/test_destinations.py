"""Destinations, and the one that the settings describe."""

from __future__ import annotations

from wds.config import Settings
from wds.domain.destinations import DEFAULT_DESTINATION, Destination

KEY = "whsec_" + "A" * 32


def test_repr_of_a_destination_shows_neither_url_nor_keys():
    settings = Settings(downstream_url="https://h/s3cret", downstream_secrets=(KEY,))
    assert repr(settings.default_destination) == "Destination('default')"
    assert str(settings.default_destination) == "Destination('default')"


def test_default_destination_has_what_the_settings_say():
    settings = Settings(
        downstream_url="https://h/",
        downstream_secrets=(KEY,),
        rate_limit=7,
        backoff=(1.0, 2.0),
        max_attempts=9,
        request_timeout=3.0,
        concurrency=11,
    )
    assert settings.default_destination == Destination(
        name=DEFAULT_DESTINATION,
        url="https://h/",
        secrets=(KEY,),
        rate_limit=7,
        backoff=(1.0, 2.0),
        max_attempts=9,
        timeout_s=3.0,
        max_in_flight=11,
    )
