"""One HTTP request to a destination, in two steps: connect, then send.

The two steps let the caller connect first and wait for its slot of the rate limit afterwards, so
that name look-up, TCP and TLS do not come between the slot and the request. `aiohttp.ClientSession`
offers no such break, so this module takes its place: like the session, it asks a connector for a
connection, lets `ClientRequest` write to it and `ClientResponse` read from it.

What must stay true: 2xx is success and everything else is failure, redirects included, because the
receiver has not accepted the event. An attempt ends within the timeout and keeps the first KiB of
the answer, even if the receiver hangs, drips, or sends an endless or compressed body.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self, TypeAlias

import aiohttp
from yarl import URL

from wds import __version__
from wds.domain import retry_policy
from wds.domain.attempt_results import (
    BrokenAnswer,
    Delivered,
    NotSent,
    Phase,
    Rejected,
    TimedOut,
    Unreachable,
)
from wds.signing import standard_webhooks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.connector import Connection

    from wds.domain.attempt_results import AttemptResult
    from wds.domain.deliveries import Claim
    from wds.domain.destinations import Destination

USER_AGENT = f"wds/{__version__}"
KEPT_RESPONSE_BYTES = 1024
READ_RESPONSE_BYTES = 64 * 1024
"""A longer answer is not read to its end: its connection is closed instead."""

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)
"""aiohttp's own timeouts round up to whole seconds; `asyncio.timeout` does not."""
_FAILURES = (aiohttp.ClientError, OSError, ValueError)


class HttpClient:
    """Sends events to one destination over connections that it keeps open."""

    def __init__(self, destination: Destination) -> None:
        """Prepare a pool of `destination.max_in_flight` connections; call in the event loop.

        Raises:
            ValueError: a key of the destination is malformed.
        """
        self.timeout_s = destination.timeout_s
        self.url = URL(destination.url)
        self.url_text = destination.url
        self.connector = aiohttp.TCPConnector(limit=destination.max_in_flight)
        self._keys = [standard_webhooks.read_key(text) for text in destination.secrets]

    def connect(self, claim: Claim) -> OutgoingRequest:
        """Return the request for `claim`; `async with` connects it.

        Leaving the block without `send` keeps the connection for the next request.
        """
        return OutgoingRequest(self, claim)

    def headers(self, claim: Claim) -> dict[str, str]:
        """Return the headers that can be known before the request leaves."""
        headers = {
            "User-Agent": USER_AGENT,
            "Accept-Encoding": "identity",
            "Content-Type": claim.content_type,
            "webhook-attempt": str(claim.attempt_number),
        }
        now = int(time.time())
        if self._keys:
            return headers | standard_webhooks.sign(self._keys, claim.id, now, claim.payload)
        return headers | {"webhook-id": claim.id, "webhook-timestamp": str(now)}

    async def close(self) -> None:
        """Close every connection and wait until that is done."""
        await self.connector.close()


ConnectFailure: TypeAlias = TimedOut | Unreachable


class OutgoingRequest:
    """One request with the exact bytes of an event: `async with` connects it, `send` sends it once.

    No step raises for a failure of the receiver.

    Attributes:
        failure: why there is no connection; None if there is one.
    """

    __slots__ = ("_claim", "_client", "_connection", "_left_s", "_request", "_sending", "failure")

    _request: aiohttp.ClientRequest

    def __init__(self, client: HttpClient, claim: Claim) -> None:
        """Keep the arguments; see `HttpClient.connect`."""
        self._client = client
        self._claim = claim
        self._connection: Connection | None = None
        self._left_s = client.timeout_s
        self._sending = False
        self.failure: ConnectFailure | None = None

    async def __aenter__(self) -> Self:
        """Connect, within the timeout."""
        client = self._client
        started = time.monotonic()
        try:
            async with asyncio.timeout(client.timeout_s):
                self._request = aiohttp.ClientRequest(
                    "POST",
                    client.url,
                    headers=client.headers(self._claim),
                    data=self._claim.payload,
                    loop=asyncio.get_running_loop(),
                )
                self._connection = await client.connector.connect(self._request, [], _NO_TIMEOUT)
        except TimeoutError:
            self.failure = TimedOut(
                sent_at=started,
                duration_ms=_milliseconds_since(started),
                phase=Phase.CONNECT,
                timeout_s=client.timeout_s,
            )
        except _FAILURES as error:
            cause, detail = self._explain(error)
            self.failure = Unreachable(
                sent_at=started,
                duration_ms=_milliseconds_since(started),
                phase=_phase(error),
                cause=cause,
                detail=detail,
            )
        self._left_s -= time.monotonic() - started
        return self

    async def __aexit__(self, *_: object) -> None:
        """Keep an unused connection; close one that `send` did not release at the answer's end."""
        if self._connection is None:
            return
        if self._sending:
            self._connection.close()
        else:
            self._connection.release()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection and the receiver has not closed it meanwhile."""
        return self._connection is not None and not self._connection.closed

    async def send(self, headers: Mapping[str, str]) -> AttemptResult | NotSent:
        """Send the request with `headers` added, and read the answer.

        Connecting and this together take no longer than the timeout; the time in between does
        not count. `NotSent` if the receiver closed the connection in between.
        """
        if self.failure is not None:
            return self.failure
        if self._connection is None or self._connection.closed:
            return NotSent("the receiver closed the connection before the request left")
        self._request.headers.update(headers)
        self._sending = True
        status: int | None = None
        retry_after_s = 0.0
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._left_s):
                async with await self._start_answer(self._connection) as answer:
                    status = answer.status
                    retry_after_s = _retry_after_s(answer.headers)
                    body = await _read_beginning(answer)
        except TimeoutError:
            return TimedOut(
                sent_at=started,
                duration_ms=_milliseconds_since(started),
                status_code=status,
                retry_after_s=retry_after_s,
                phase=Phase.ANSWER,
                timeout_s=self._client.timeout_s,
            )
        except _FAILURES as error:
            cause, detail = self._explain(error)
            return BrokenAnswer(
                sent_at=started,
                duration_ms=_milliseconds_since(started),
                status_code=status,
                retry_after_s=retry_after_s,
                cause=cause,
                detail=detail,
            )
        return (Delivered if 200 <= status < 300 else Rejected)(  # noqa: PLR2004 - HTTP's
            sent_at=started,
            duration_ms=_milliseconds_since(started),
            status_code=status,
            response=body[:KEPT_RESPONSE_BYTES].decode("utf-8", errors="replace"),
            retry_after_s=retry_after_s,
        )

    async def _start_answer(self, connection: Connection) -> aiohttp.ClientResponse:
        """Write the request and read the answer's head."""
        if (protocol := connection.protocol) is not None:
            protocol.set_response_params(read_until_eof=True, auto_decompress=False)
        answer = await self._request.send(connection)
        try:
            return await answer.start(connection)
        except BaseException:
            answer.close()
            raise

    def _explain(self, error: Exception) -> tuple[str, str]:
        """Return the class and the message of `error` without the URL, which may hold a secret."""
        if isinstance(error, OSError) and not isinstance(error, aiohttp.ClientError):
            error = aiohttp.ClientOSError(*error.args)  # as a session would call it
        text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
        return type(error).__name__, text.replace(self._client.url_text, "the downstream")


def _phase(error: Exception) -> Phase:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return Phase.LOOK_UP
        case aiohttp.ClientSSLError():
            return Phase.TLS_HANDSHAKE
        case _:
            return Phase.CONNECT


def _milliseconds_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)


async def _read_beginning(answer: aiohttp.ClientResponse) -> bytes:
    """Read a short body to its end, so that the connection can be kept; give up on a long one."""
    body = b""
    while len(body) <= READ_RESPONSE_BYTES:
        chunk = await answer.content.readany()
        if not chunk:
            return body
        body += chunk
    answer.close()
    return body


def _retry_after_s(headers: Mapping[str, str]) -> float:
    value = headers.get("Retry-After")
    if value is None:
        return 0.0
    now = retry_policy.http_date(headers.get("Date", "")) or datetime.now(UTC)
    return retry_policy.retry_after_s(value, now)
