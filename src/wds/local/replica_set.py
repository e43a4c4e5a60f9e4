"""Making a mongod of one's own the replica set that `mongo` asks for; one node is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import OperationFailure, PyMongoError
from tenacity import AsyncRetrying, RetryError, stop_after_delay, wait_random_exponential

from wds.domain.errors import StartError, StoreUnavailableError

if TYPE_CHECKING:
    from wds.storage.mongo import Document

_ALREADY_INITIALIZED = 23


async def initiate_replica_set(host: str, port: int, name: str) -> None:
    """Make the mongod at `host:port` a one-node replica set, or give an old one this address.

    Raises:
        StartError: it did not become primary.
    """
    client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(
        host, port, directConnection=True, serverSelectionTimeoutMS=20_000
    )
    config = {"_id": name, "members": [{"_id": 0, "host": f"{host}:{port}"}]}
    try:
        try:
            await client.admin.command("replSetInitiate", config)
        except OperationFailure as error:
            if error.code != _ALREADY_INITIALIZED:
                raise
            await _move_replica_set(client, config)
        async for attempt in AsyncRetrying(
            stop=stop_after_delay(20), wait=wait_random_exponential(multiplier=0.02, max=0.2)
        ):
            with attempt:
                hello = await client.admin.command("hello")
                if not hello.get("isWritablePrimary"):
                    raise StoreUnavailableError
    except (PyMongoError, RetryError) as error:
        msg = f"mongod on port {port} did not become a primary: {error}"
        raise StartError(msg) from error
    finally:
        client.close()


async def _move_replica_set(client: AsyncIOMotorClient[Document], config: Document) -> None:
    """Force the stored configuration to this address: data kept from an earlier port."""
    current = (await client.admin.command("replSetGetConfig"))["config"]
    if current["members"][0]["host"] == config["members"][0]["host"]:
        return
    moved = {**current, "members": config["members"], "version": current["version"] + 1}
    await client.admin.command("replSetReconfig", moved, force=True)
