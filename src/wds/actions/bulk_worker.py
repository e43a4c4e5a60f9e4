"""Carries out bulk actions, in every process that serves operators: one at a time.

Between two chunks it sleeps as long as the last one took. So at most half of one connection's time
goes into bulk actions, and senders are served meanwhile. If the process dies, the lease of the bulk
action expires and another process continues (`storage.bulk_actions`).
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

    from wds.storage.bulk_actions import BulkActions, HeldBulkAction

log = structlog.get_logger(__name__)

POLL_INTERVAL_S = 2.0
"""Seconds between polls for bulk actions that other processes have started or left."""
TOO_SLOW = "finding the next events takes too long; start another over a shorter range of time"


class BulkWorker:
    """Carries out the bulk actions of one database; call `wake` when there is a new one."""

    def __init__(self, bulk_actions: BulkActions, *, owner: str) -> None:
        """Lease bulk actions in the name of this process, `owner`."""
        self._bulk_actions = bulk_actions
        self._owner = owner
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Poll for bulk actions now."""
        self._woken.set()

    async def run_once(self) -> bool:
        """Lease one bulk action and carry it out until it is finished; False if there was none.

        Raises:
            StoreUnavailableError: the bulk action continues when its lease has expired.
        """
        held = await self._bulk_actions.take(self._owner)
        if held is None:
            return False
        bulk_action = held.bulk_action
        facts = {"request_id": bulk_action.request_id, "action": bulk_action.action}
        log.info("bulk_action_taken", **facts, changed=bulk_action.changed)
        try:
            await self._carry_out(held)
        except SearchTooSlowError:
            log.warning("bulk_action_too_slow", **facts)
            await self._bulk_actions.fail(held, TOO_SLOW)
        except StoreUnavailableError:
            raise
        except Exception as error:
            # It would fail in the next process as well, and hold up all others.
            log.exception("bulk_action_crashed", **facts)
            await self._bulk_actions.fail(held, type(error).__name__)
        bulk_action = held.bulk_action
        log.info(
            "bulk_action_left",
            **facts,
            state=bulk_action.state,
            examined=bulk_action.examined,
            changed=bulk_action.changed,
        )
        return True

    async def _carry_out(self, held: HeldBulkAction) -> None:
        more = True
        while more:
            started_at = time.monotonic()
            before = held.bulk_action
            more = await self._bulk_actions.step(held)
            changed = held.bulk_action.changed - before.changed
            metrics.EVENTS_CHANGED.labels(before.action).inc(changed)
            await asyncio.sleep(time.monotonic() - started_at)

    async def run(self) -> None:
        """Work until cancelled; wait while there is nothing to do or MongoDB is unavailable."""
        while True:
            self._woken.clear()
            worked = False
            try:
                worked = await self.run_once()
            except StoreUnavailableError as error:
                log.warning("bulk_action_waits", cause=str(error))
            except Exception:
                # A defect must be logged, and must not end the service.
                log.exception("bulk_worker_crashed")
            if not worked:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), POLL_INTERVAL_S)

    def running(self) -> AbstractAsyncContextManager[None]:
        """Run inside the block."""
        return beside(self.run())
