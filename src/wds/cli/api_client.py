"""The client of the operators' routes of an ingest service."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp

from wds.cli.http_retries import TRANSIENT_ERRORS, UnavailableError, with_retries
from wds.config import Settings, local_host
from wds.domain.errors import WdsError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

_RETRY_LATER = {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}


class ApiError(WdsError):
    """The service refused a request or did not answer; the message says why.

    Attributes:
        status: of the answer; None if there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        """`message` is one line for the terminal."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Service:
    """The URL of an ingest service, and the token for its operators' routes, if it has one."""

    url: str
    token: str | None = field(repr=False)

    @classmethod
    def at(cls, url: str | None, environ: Mapping[str, str]) -> Service:
        """Return the service at `url`; at None, the one that the settings describe.

        Raises:
            SettingsError: a setting is malformed.
        """
        settings = Settings.load(environ)
        host = local_host(settings.host)
        host = f"[{host}]" if ":" in host else host
        url = url or f"http://{host}:{settings.port}"
        return cls(url.rstrip("/"), settings.operator_token)


class ApiClient:
    """Sends requests to one service, and repeats those that fail: every one is safe to repeat."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        """`url` is the address of the ingest service, without a path."""
        self._session = session
        self._url = url

    async def request_json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Any:  # noqa: ANN401 - JSON
        """Return the parsed JSON of the answer.

        Raises:
            ApiError: with the service's own reason.
        """
        return json.loads(await self.request_bytes(method, path, body))

    async def request_bytes(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> bytes:
        """Return the body of the answer, byte for byte.

        Raises:
            ApiError: with the service's own reason.
        """

        async def request() -> bytes:
            async with self._session.request(method, self._url + path, json=body) as response:
                if response.status in _RETRY_LATER:
                    raise UnavailableError(await _reason(response))
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise ApiError(await _reason(response), response.status)
                return await response.read()

        try:
            return await with_retries(request)
        except TRANSIENT_ERRORS as error:
            msg = f"{self._url} does not answer: {str(error) or type(error).__name__}"
            raise ApiError(msg) from error

    async def stream_lines(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """Yield the lines of the answer to a POST, which is not repeated.

        Raises:
            ApiError: with the service's own reason, or because the answer is incomplete.
        """
        try:
            async with self._session.post(self._url + path, json=body) as response:
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise ApiError(await _reason(response), response.status)
                buffer = b""
                async for chunk in response.content.iter_any():
                    *lines, buffer = (buffer + chunk).split(b"\n")
                    for line in lines:
                        yield line
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            msg = f"the answer of {self._url} ended early: {reason}"
            raise ApiError(msg) from error


@asynccontextmanager
async def connected(service: Service) -> AsyncIterator[ApiClient]:
    """Yield a client of `service` for the block."""
    headers = {} if service.token is None else {"Authorization": f"Bearer {service.token}"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        yield ApiClient(session, service.url)


async def _reason(response: aiohttp.ClientResponse) -> str:
    try:
        error = (await response.json(content_type=None))["error"]
        details = "; ".join(f"{each['field']}: {each['message']}" for each in error["details"])
        return f"{response.status} {error['code']}: {details or error['message']}"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status} without a reason: is this a wds ingest service?"
