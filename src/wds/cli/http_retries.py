"""Repeating HTTP requests that are safe to repeat."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import TYPE_CHECKING, TypeVar

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

TRIES = 6
FIRST_WAIT_S = 0.2
MAX_WAIT_S = 5.0


class UnavailableError(Exception):
    """The service asks for the same request again later."""


TRANSIENT_ERRORS = (UnavailableError, aiohttp.ClientError, TimeoutError)


async def with_retries(request: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `request`, repeating it after each of `TRANSIENT_ERRORS`.

    The wait doubles each time, up to `MAX_WAIT_S`, plus a random part of a second. After `TRIES`
    requests in all, the last error is raised.
    """
    for attempt in itertools.count(1):
        try:
            return await request()
        except TRANSIENT_ERRORS:
            if attempt == TRIES:
                raise
        wait = min(FIRST_WAIT_S * 2 ** (attempt - 1), MAX_WAIT_S)
        await asyncio.sleep(wait + random.random())  # noqa: S311 - jitter
    raise AssertionError
