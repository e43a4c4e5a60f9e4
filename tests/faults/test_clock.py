"""A dispatcher with a wall clock minutes ahead or behind behaves like any other."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from tests.e2e import processes
from tests.faults.harness import system

# Runs `python -m wds` with a wrong time() and datetime.now().
WRONG_CLOCK = """
import datetime, runpy, sys, time
shift = float(sys.argv.pop(1))
real = time.time
time.time = lambda: real() + shift
class Wrong(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=shift)
datetime.datetime = Wrong
runpy.run_module("wds", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("minutes", [-5, 5])
async def test_dispatcher_clock_wrong_by_minutes_changes_no_retry_and_no_lease(
    tmp_path, seed, minutes
):
    answered: set[str] = set()

    async def fail_once(request: web.Request) -> web.Response:
        event_id = request.headers["webhook-id"]
        known = event_id in answered
        answered.add(event_id)
        return web.Response(status=200 if known else 500)

    script = tmp_path / "wrong_clock.py"
    script.write_text(WRONG_CLOCK)
    # A small concurrency, so that both dispatchers get events.
    settings = {"WDS_BACKOFF": "1,1,1", "WDS_CONCURRENCY": "8"}
    async with system(tmp_path, seed=seed, dispatchers=1, settings=settings) as running:
        running.receiver.answer = fail_once
        async with AsyncExitStack() as stack:
            wrong = {**running.env, "WDS_METRICS_PORT": "0"}
            command = (sys.executable, str(script), str(minutes * 60), "dispatcher")
            made = processes.running(env=wrong, cwd=tmp_path, command=command)
            process = await stack.enter_async_context(made)
            await running.sender.send(200)
            await running.settled(200, within_s=60)
            verdict = await running.verdict()
            owners = await running.db.fleet.find_one({})
            assert len([r for r in owners["replicas"] if r["role"] == "dispatcher"]) == 2
            assert process.text.count('"event":"attempt"') > 20, "the wrong clock did no work"
    stamps = [int(each.headers["webhook-timestamp"]) for each in running.receiver.requests]
    assert max(stamps) - min(stamps) > 240, "no clock was wrong"
    assert verdict.faults == {}
    assert verdict.duplicated == {}
    assert all(retry_delays_kept(running.receiver.requests))


def retry_delays_kept(requests) -> list[bool]:
    """Return, for each retried event, whether its second request came 1 to 5 s after the first."""
    first: dict[str, float] = {}
    kept = []
    for each in requests:
        event_id = each.headers["webhook-id"]
        if event_id in first:
            kept.append(1 <= each.at - first[event_id] < 5)
        else:
            first[event_id] = each.at
    return kept
