"""Carries bulk actions out, in any process that serves operators: one at a time, out of the way.

Between two chunks it rests as long as the last one took, so that at most half of one connection's
time goes into it and senders are served meanwhile. If the process dies, the lease of the bulk
action expires and another process goes on (`bulk`).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from wds.concurrency.background import beside
from wds.domain.errors import SearchTooSlowError, StoreUnavailableError
from wds.telemetry import metrics

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from wds.storage.bulk_actions import BulkActions, Taken

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 2.0
"""Seconds between looks for bulk actions that another process left."""
TOO_SLOW = "finding the next events takes too long; begin another over a shorter range of time"


class BulkWorker:
    """Works on the bulk actions of one database; `wake` when there is a new one."""

    def __init__(self, bulk: BulkActions, *, owner: str) -> None:
        """Take what to work on, and this process's name."""
        self._bulk = bulk
        self._owner = owner
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look for bulk actions now."""
        self._woken.set()

    async def run_once(self) -> bool:
        """Carry one bulk action out to its end; False if none was free.

        Raises:
            StoreUnavailableError: what was not finished goes on when its lease has expired.
        """
        taken = await self._bulk.take(self._owner)
        if taken is None:
            return False
        facts = {"request_id": taken.document["_id"], "action": taken.document["action"]}
        log.info("bulk_action_taken", **facts, changed=taken.document["changed"])
        try:
            await self._work(taken)
        except SearchTooSlowError:
            log.warning("bulk_action_too_slow", **facts)
            await self._bulk.fail(taken, TOO_SLOW)
        except StoreUnavailableError:
            raise
        except Exception as error:
            # It would fail for whoever took it next, and keep all others waiting.
            log.exception("bulk_action_crashed", **facts)
            await self._bulk.fail(taken, type(error).__name__)
        log.info("bulk_action_left", **facts, **_progress(taken))
        return True

    async def _work(self, taken: Taken) -> None:
        more = True
        while more:
            began = time.monotonic()
            before = taken.document["changed"]
            more = await self._bulk.step(taken)
            changed = taken.document["changed"] - before
            metrics.EVENTS_CHANGED.labels(taken.document["action"]).inc(changed)
            await asyncio.sleep(time.monotonic() - began)

    async def run(self) -> None:
        """Work until cancelled, waiting where there is nothing to do or MongoDB is away."""
        while True:
            self._woken.clear()
            worked = False
            try:
                worked = await self.run_once()
            except StoreUnavailableError as error:
                log.warning("bulk_action_waits", cause=str(error))
            except Exception:
                # A defect here must be seen, and must not end the service.
                log.exception("bulk_worker_crashed")
            if not worked:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), LOOK_EVERY_S)


def _progress(taken: Taken) -> dict[str, object]:
    return {name: taken.document[name] for name in ("state", "examined", "changed")}


def working(worker: BulkWorker) -> AbstractAsyncContextManager[None]:
    """Run `worker` inside the block."""
    return beside(worker.run())
