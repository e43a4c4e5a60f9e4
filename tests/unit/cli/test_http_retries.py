"""Repeating HTTP requests."""

from __future__ import annotations

import aiohttp
import pytest

from wds.cli import http_retries
from wds.cli.http_retries import TRIES, UnavailableError, with_retries


@pytest.fixture
def waits(monkeypatch):
    """Record the waits instead of waiting."""
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr(http_retries.asyncio, "sleep", sleep)
    return waits


class Request:
    """Fails with each of `errors` in turn, then succeeds."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.count = 0

    async def __call__(self):
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


async def test_with_retries_repeats_after_every_transient_error(waits):
    request = Request(UnavailableError(), aiohttp.ClientError(), TimeoutError())
    assert await with_retries(request) == "answer"
    assert request.count == 4
    for wait, least in zip(waits, (0.2, 0.4, 0.8), strict=True):
        assert least <= wait <= least + 1


async def test_with_retries_raises_the_last_error_in_the_end(waits):
    request = Request(*(UnavailableError(number) for number in range(100)))
    with pytest.raises(UnavailableError, match=str(TRIES - 1)):
        await with_retries(request)
    assert (request.count, len(waits)) == (TRIES, TRIES - 1)
    assert max(waits) <= http_retries.MAX_WAIT_S + 1


async def test_with_retries_does_not_repeat_after_another_error(waits):
    request = Request(ValueError("malformed"))
    with pytest.raises(ValueError, match="malformed"):
        await with_retries(request)
    assert (request.count, waits) == (1, [])
