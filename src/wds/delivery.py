"""One HTTP attempt: prepare, POST, and put what happened into a value.

Policy: 2xx is success and everything else is failure, redirects included, because a receiver
that moved has not received. Whatever the downstream does - hang, drip, endless or compressed
bodies - an attempt ends within the timeout and keeps at most the first KiB of the answer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import aiohttp

from wds import __version__, backoff

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wds.model import Claim


USER_AGENT = f"wds/{__version__}"
KEPT_RESPONSE_BYTES = 1024
READ_RESPONSE_BYTES = 64 * 1024
"""An answer longer than this is cut off with its connection, instead of being read to its end."""
MAX_ERROR_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Result:
    """What one request came to.

    Attributes:
        status_code: None if no answer came.
        error: None exactly on success.
        response: the beginning of the answer's body, undecodable bytes replaced.
        duration_ms: of the whole exchange.
        retry_after_s: what the answer's `Retry-After` asks for, 0 for nothing.
    """

    status_code: int | None
    error: str | None
    response: str | None
    duration_ms: int
    retry_after_s: float = 0.0


class Deliverer:
    """Sends claims to one URL over a pool of kept connections."""

    def __init__(self, url: str, *, timeout_s: float, connections: int) -> None:
        """Prepare a session; call inside a running event loop."""
        self._url = url
        self._timeout_s = timeout_s
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        )

    async def post(self, claim: Claim) -> Result:
        """Send the event's exact bytes once. Never raises for anything the downstream does."""
        started = time.monotonic()
        status: int | None = None
        response: str | None = None
        asked_s = 0.0
        try:
            async with self._session.post(
                self._url, data=claim.payload, headers=_headers(claim), allow_redirects=False
            ) as answer:
                status = answer.status
                asked_s = _asked_s(answer.headers)
                body = await _beginning(answer)
                response = body[:KEPT_RESPONSE_BYTES].decode("utf-8", errors="replace")
            error = None if 200 <= status < 300 else f"HTTP {status}"  # noqa: PLR2004 - HTTP's
        except TimeoutError:
            error = f"no complete answer within {self._timeout_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            error = self._reason(failure)
        return Result(status, error, response, round((time.monotonic() - started) * 1000), asked_s)

    def _reason(self, failure: Exception) -> str:
        """Say what went wrong without the URL, which may carry a secret of the downstream's."""
        text = str(failure)
        if isinstance(failure, aiohttp.ClientResponseError):
            text = failure.message
        text = text.replace(self._url, "the downstream")
        return f"{type(failure).__name__}: {text}"[:MAX_ERROR_LENGTH]

    async def close(self) -> None:
        """Close every connection and wait until that is done."""
        await self._session.close()


async def _beginning(answer: aiohttp.ClientResponse) -> bytes:
    """Read a short body to its end, so that the connection is kept; give up on a long one."""
    body = b""
    while len(body) <= READ_RESPONSE_BYTES:
        chunk = await answer.content.readany()
        if not chunk:
            return body
        body += chunk
    answer.close()
    return body


def _headers(claim: Claim) -> dict[str, str]:
    return {
        "Content-Type": claim.content_type,
        "webhook-id": claim.id,
        "webhook-timestamp": str(int(time.time())),
        "webhook-attempt": str(claim.attempt_number),
    }


def _asked_s(headers: Mapping[str, str]) -> float:
    now = backoff.http_date(headers.get("Date", "")) or datetime.now(UTC)
    return backoff.retry_after_s(headers.get("Retry-After"), now)
