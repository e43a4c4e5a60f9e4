"""What our own commands share as clients of the ingest service: patience, and showing progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

if TYPE_CHECKING:
    from rich.console import Console

TRIES = 6


class ComeBackError(Exception):
    """The service cannot answer now."""


def patiently() -> AsyncRetrying:
    """Return what repeats a request that is safe to repeat, `TRIES` times in all.

    After `ComeBackError` and whatever breaks on the way; `tenacity.RetryError` at the end.
    """
    return AsyncRetrying(
        retry=retry_if_exception_type((ComeBackError, aiohttp.ClientError, TimeoutError)),
        stop=stop_after_attempt(TRIES),
        wait=wait_exponential(multiplier=0.2, max=5) + wait_random(max=1),
    )


def progress(text: str, console: Console) -> Progress:
    """Return a progress bar, drawn for people only and not into files and pipes."""
    return Progress(
        TextColumn(text),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
