"""One HTTP attempt: prepare, POST, and put what happened into a value.

Policy: 2xx is success and everything else is failure, redirects included, because a receiver
that moved has not received. Whatever the downstream does - hang, drip, endless or compressed
bodies - an attempt ends within the timeout and keeps at most the first KiB of the answer.

The connection is made first and the request leaves when the caller's gate opens, so that
looking up a name, TCP and TLS do not come between a slot of the rate limit and its request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiohttp
from msgspec import Struct

from wds import __version__
from wds.domain import retry_policy
from wds.domain.errors import WdsError
from wds.signing import standard_webhooks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp.connector import Connection

    from wds.domain.deliveries import Claim


Gate = Callable[[], Awaitable[bool]]
"""Waits until a request may leave: True; False if it must not."""

Leaving = Callable[[], Mapping[str, str]]
"""Called when the request leaves; returns headers that only then can be known."""

USER_AGENT = f"wds/{__version__}"
KEPT_RESPONSE_BYTES = 1024
READ_RESPONSE_BYTES = 64 * 1024
"""An answer longer than this is cut off with its connection, instead of being read to its end."""
MAX_ERROR_LENGTH = 300


class Result(Struct, frozen=True):
    """What one request came to.

    Attributes:
        status_code: None if no answer came.
        error: None exactly on success.
        response: the beginning of the answer's body, undecodable bytes replaced.
        duration_ms: from when the request left, or if it did not from the attempt's start.
        sent_at: `time.monotonic()` of the same instant.
        retry_after_s: what the answer's `Retry-After` asks for, 0 for nothing.
    """

    status_code: int | None
    error: str | None
    response: str | None
    duration_ms: int
    sent_at: float
    retry_after_s: float = 0.0


class NotSentError(WdsError):
    """The gate stayed shut, or the connection was gone when it opened: no request was made."""


@dataclass(slots=True)
class _Departure:
    """What one request waits for and takes along."""

    gate: Gate
    leaving: Leaving

    def forget(self) -> None:
        """Let go of both, and so of the payload.

        Whatever was begun in this context, such as a kept connection, keeps it, and this object.
        """
        self.gate = _open
        self.leaving = _nothing


_departure: ContextVar[_Departure] = ContextVar("departure")


class _GatedConnector(aiohttp.TCPConnector):
    """Hands a connection out only once the gate of the current task has opened."""

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        usable = False
        try:
            opened = await _departure.get().gate()
            protocol = connection.protocol
            usable = opened and protocol is not None and protocol.is_connected()
        finally:
            if not usable:
                connection.release()
        if not usable:
            raise NotSentError
        req.headers.update(_departure.get().leaving())
        return connection


async def _open() -> bool:
    return True


def _nothing() -> Mapping[str, str]:
    return {}


class Deliverer:
    """Sends claims to one URL over a pool of kept connections."""

    def __init__(
        self, url: str, *, timeout_s: float, connections: int, secrets: Sequence[str] = ()
    ) -> None:
        """Prepare a session; call inside a running event loop.

        `secrets` are keys of Standard Webhooks that can sign. Every attempt is signed with each.
        """
        self._url = url
        self._keys = [standard_webhooks.read_key(secret) for secret in secrets]
        self._timeout_s = timeout_s
        self._session = aiohttp.ClientSession(
            connector=_GatedConnector(limit=connections),
            timeout=aiohttp.ClientTimeout(total=None),  # which would round up; see `post`
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        )

    async def post(self, claim: Claim, gate: Gate = _open, leaving: Leaving = _nothing) -> Result:
        """Send the event's exact bytes once, when `gate` says so, with what `leaving` adds.

        Connecting and the exchange together take no longer than the timeout; waiting at the
        gate does not count. Never raises for anything the downstream does.

        Raises:
            NotSentError: no request was made.
        """
        started = time.monotonic()
        status: int | None = None
        response: str | None = None
        asked_s = 0.0

        async def timed_gate() -> bool:
            nonlocal started
            connecting_s = time.monotonic() - started
            deadline.reschedule(None)
            opened = await gate()
            started = time.monotonic()
            now = asyncio.get_running_loop().time()
            deadline.reschedule(now + self._timeout_s - connecting_s)
            return opened

        departure = _Departure(timed_gate, leaving)
        _departure.set(departure)
        try:
            async with (
                asyncio.timeout(self._timeout_s) as deadline,
                self._session.post(
                    self._url,
                    data=claim.payload,
                    headers=self._headers(claim),
                    allow_redirects=False,
                ) as answer,
            ):
                status = answer.status
                asked_s = _asked_s(answer.headers)
                body = await _beginning(answer)
                response = body[:KEPT_RESPONSE_BYTES].decode("utf-8", errors="replace")
            error = None if 200 <= status < 300 else f"HTTP {status}"  # noqa: PLR2004 - HTTP's
        except TimeoutError:
            error = f"no complete answer within {self._timeout_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            error = self._reason(failure)
        finally:
            departure.forget()
        duration_ms = round((time.monotonic() - started) * 1000)
        return Result(status, error, response, duration_ms, started, asked_s)

    def _headers(self, claim: Claim) -> dict[str, str]:
        headers = {"Content-Type": claim.content_type, "webhook-attempt": str(claim.attempt_number)}
        now = int(time.time())
        if self._keys:
            return headers | standard_webhooks.sign(self._keys, claim.id, now, claim.payload)
        return headers | {"webhook-id": claim.id, "webhook-timestamp": str(now)}

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


def _asked_s(headers: Mapping[str, str]) -> float:
    asked = headers.get("Retry-After")
    if asked is None:
        return 0.0
    now = retry_policy.http_date(headers.get("Date", "")) or datetime.now(UTC)
    return retry_policy.retry_after_s(asked, now)
