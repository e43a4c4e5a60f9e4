"""Turning a mongod into a replica set of one node, which `storage.mongo` requires."""

from __future__ import annotations

from typing import Any

from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError
from tenacity import AsyncRetrying, RetryError, stop_after_delay, wait_random_exponential

from wds.domain.errors import StartError, StoreUnavailableError

Document = dict[str, Any]

_ALREADY_INITIALIZED = 23


async def initiate_replica_set(host: str, port: int, name: str) -> None:
    """Make the mongod at `host:port` a replica set called `name`, and wait until it is primary.

    A mongod that is one already, with data from an earlier run, gets this address.

    Raises:
        StartError: it did not become primary.
    """
    client: AsyncMongoClient[Document] = AsyncMongoClient(
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
        await client.close()


async def _move_replica_set(client: AsyncMongoClient[Document], config: Document) -> None:
    """Change the address in the stored configuration, if the data are from another port."""
    current = (await client.admin.command("replSetGetConfig"))["config"]
    if current["members"][0]["host"] == config["members"][0]["host"]:
        return
    moved = {**current, "members": config["members"], "version": current["version"] + 1}
    await client.admin.command("replSetReconfig", moved, force=True)
