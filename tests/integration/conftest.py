"""The ingest service in this process, over real engines, reached over a real socket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.support import receiving, signed
from wds.ingest import create_app
from wds.web.server import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support import Receiver
    from wds.config import Settings
    from wds.storage.store import Store


@dataclass
class Client:
    """An HTTP client of one ingest service. Answers are (status, JSON)."""

    session: aiohttp.ClientSession
    url: str

    async def post(
        self, path: str, body: bytes, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        sent = {"Content-Type": "application/json"} if headers is None else headers
        async with self.session.post(self.url + path, data=body, headers=sent) as response:
            return response.status, await response.json()

    async def ingest(self, body: bytes, **headers: str) -> tuple[int, Any]:
        """Post one signed event; keyword arguments become headers (`_` for `-`)."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.post("/webhooks/ingest", body, {**signed(body), **more})

    async def batch(self, body: bytes, **headers: str) -> tuple[int, Any]:
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.post("/webhooks/ingest/batch", body, {**signed(body), **more})

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.json()


@pytest.fixture
async def client(settings: Settings, store: Store) -> AsyncIterator[Client]:
    async with (
        listening(create_app(settings, store), "127.0.0.1", 0) as port,
        aiohttp.ClientSession() as session,
    ):
        yield Client(session, f"http://127.0.0.1:{port}")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """Run a downstream that records every request."""
    async with receiving() as receiver:
        yield receiver
