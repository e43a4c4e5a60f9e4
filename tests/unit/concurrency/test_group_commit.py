"""What arrives while a write is in flight goes out as the next one."""

from __future__ import annotations

import asyncio
import contextvars
import random
from itertools import chain

import pytest

from wds.concurrency.group_commit import SLOW_COMMIT_S, GroupCommit
from wds.domain.errors import QueueFullError


class BrokenError(Exception):
    """The write that holds a chosen item fails."""


class Commit:
    """A write that takes until `finish`, and records what it was given."""

    def __init__(self, *, broken=()):
        self.batches = []
        self.in_flight = self.most_in_flight = 0
        self._broken = set(broken)
        self._permits = asyncio.Semaphore(0)

    async def __call__(self, items):
        self.batches.append(list(items))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self._permits.acquire()
        self.in_flight -= 1
        if self._broken & set(items):
            raise BrokenError
        return [f"r{item}" for item in items]

    def finish(self, batches=1_000):
        for _ in range(batches):
            self._permits.release()


def grouped(commit, *, max_batch=100, max_pending=100, **more):
    return GroupCommit(commit, max_batch=max_batch, max_pending=max_pending, **more)


async def turn():
    """Let everything that is ready run until it waits: a fixed number of turns, no clock."""
    for _ in range(10):
        await asyncio.sleep(0)


async def submitted(group, *submissions):
    """Start one submitter for each and let all of them wait for their results."""
    tasks = [asyncio.create_task(group.submit(*items)) for items in submissions]
    await turn()
    return tasks


async def outcomes(tasks):
    """Return each task's result or exception; one that never ends is a failure."""
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)


async def test_submit_returns_results_in_the_order_of_submission():
    commit = Commit()
    tasks = await submitted(grouped(commit), (3, 1, 2), (9,), (8, 7))
    commit.finish()
    assert await outcomes(tasks) == [["r3", "r1", "r2"], ["r9"], ["r8", "r7"]]


async def test_submit_commits_a_lone_item_at_once():
    commit = Commit()
    tasks = await submitted(grouped(commit), (1,))
    assert commit.batches == [[1]]
    commit.finish()
    assert await outcomes(tasks) == [["r1"]]


async def test_submit_during_a_commit_joins_the_next_batch():
    commit = Commit()
    group = grouped(commit)
    tasks = await submitted(group, (1,))
    tasks += await submitted(group, (2,), (3, 4))
    tasks += await submitted(group, (5,))
    assert commit.batches == [[1]]
    commit.finish(1)
    await turn()
    assert commit.batches == [[1], [2, 3, 4, 5]]
    commit.finish()
    assert await outcomes(tasks) == [["r1"], ["r2"], ["r3", "r4"], ["r5"]]


async def test_group_commit_has_one_batch_in_flight_by_default():
    commit = Commit()
    group = grouped(commit, max_batch=2)
    tasks = await submitted(group, *[(n,) for n in range(20)])
    commit.finish()
    await outcomes(tasks)
    assert len(commit.batches) >= 10 and commit.most_in_flight == 1


async def test_parallel_batch_starts_once_min_parallel_batch_items_are_pending():
    commit = Commit()
    group = grouped(commit, max_in_flight=2, min_parallel_batch=3)
    tasks = await submitted(group, (1,))
    tasks += await submitted(group, (2,), (3,))
    assert commit.batches == [[1]]
    tasks += await submitted(group, (4,))
    assert commit.batches == [[1], [2, 3, 4]]
    tasks += await submitted(group, (5, 6, 7, 8))
    assert commit.batches == [[1], [2, 3, 4]]
    commit.finish(1)
    await turn()
    assert commit.batches == [[1], [2, 3, 4], [5, 6, 7, 8]]
    commit.finish()
    assert await outcomes(tasks) == [["r1"], ["r2"], ["r3"], ["r4"], ["r5", "r6", "r7", "r8"]]


async def test_parallel_batch_waits_until_it_is_as_large_as_those_in_flight():
    commit = Commit()
    group = grouped(commit, max_in_flight=2, min_parallel_batch=2)
    tasks = await submitted(group, (1, 2, 3, 4, 5))
    tasks += await submitted(group, (6, 7), (8, 9))
    assert commit.batches == [[1, 2, 3, 4, 5]]
    tasks += await submitted(group, (10,))
    assert commit.batches == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    commit.finish()
    await outcomes(tasks)


async def test_parallel_batch_takes_an_equal_share_of_all_items():
    commit = Commit()
    group = grouped(commit, max_in_flight=2, min_parallel_batch=2)
    tasks = await submitted(group, (1, 2, 3))
    tasks += await submitted(group, (4, 5, 6, 7, 8, 9, 10))
    assert commit.batches == [[1, 2, 3], [4, 5, 6, 7, 8]]
    commit.finish(1)
    await turn()
    assert commit.in_flight == 1
    tasks += await submitted(group, (11, 12, 13))
    assert commit.batches == [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10, 11, 12, 13]]
    commit.finish()
    await outcomes(tasks)


async def test_parallel_batch_ignores_the_size_of_finished_batches():
    commit = Commit()
    group = grouped(commit, max_in_flight=2, min_parallel_batch=2)
    tasks = await submitted(group, (1, 2, 3))
    tasks += await submitted(group, (4, 5, 6))
    tasks += await submitted(group, (7, 8, 9, 10))
    assert commit.batches == [[1, 2, 3], [4, 5, 6]]
    commit.finish(1)
    await turn()
    assert commit.batches[2:] == [[7, 8, 9, 10]]
    commit.finish()
    await outcomes(tasks)


async def test_parallel_batch_ignores_the_age_of_finished_batches(monkeypatch):
    now = 0.0
    monkeypatch.setattr("wds.concurrency.group_commit.time.monotonic", lambda: now)
    commit = Commit()
    group = grouped(commit, max_in_flight=2, min_parallel_batch=2)
    tasks = await submitted(group, (1, 2, 3))
    now = SLOW_COMMIT_S * 0.9
    tasks += await submitted(group, (4, 5, 6))
    tasks += await submitted(group, (7, 8))
    now = SLOW_COMMIT_S * 1.1
    commit.finish(1)
    await turn()
    assert commit.batches == [[1, 2, 3], [4, 5, 6]]
    tasks += await submitted(group, (9,))
    assert commit.batches[2:] == [[7, 8, 9]]
    commit.finish()
    await outcomes(tasks)


async def test_parallel_batch_beside_a_slow_commit_may_be_smaller(monkeypatch):
    now = 0.0
    monkeypatch.setattr("wds.concurrency.group_commit.time.monotonic", lambda: now)
    commit = Commit()
    group = grouped(commit, max_in_flight=2, min_parallel_batch=2)
    tasks = await submitted(group, (1, 2, 3, 4, 5), (6,))
    now = SLOW_COMMIT_S * 1.1
    tasks += await submitted(group, (7,))
    assert len(commit.batches) == 1
    tasks += await submitted(group, (8,))
    assert commit.batches[1:] == [[7, 8]]
    commit.finish()
    await outcomes(tasks)


async def test_parallel_batch_that_is_full_needs_only_a_free_place():
    commit = Commit()
    group = GroupCommit(
        commit,
        weigh=lambda item: item,
        max_batch=100,
        max_pending=1_000,
        max_in_flight=2,
        min_parallel_batch=4,
    )
    tasks = await submitted(group, (1, 2, 3, 4, 5))
    tasks += await submitted(group, (60,))
    assert len(commit.batches) == 1
    tasks += await submitted(group, (40,))
    assert commit.batches[1:] == [[60, 40]]
    commit.finish()
    await outcomes(tasks)


async def test_batch_below_min_parallel_batch_starts_once_nothing_is_in_flight():
    commit = Commit()
    group = grouped(commit, max_in_flight=2, min_parallel_batch=3)
    tasks = await submitted(group, (1,))
    tasks += await submitted(group, (2, 3, 4))
    tasks += await submitted(group, (5,))
    commit.finish(1)
    await turn()
    assert commit.batches == [[1], [2, 3, 4]]
    commit.finish(1)
    await turn()
    assert commit.batches == [[1], [2, 3, 4], [5]]
    commit.finish()
    assert await outcomes(tasks) == [["r1"], ["r2", "r3", "r4"], ["r5"]]
    await asyncio.wait_for(group.drain(), 5)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelled_batch_leaves_pending_items_to_the_others_in_flight():
    commit = Commit()
    first = asyncio.Event()

    async def cancelled_first(items):
        if 1 in items:
            await first.wait()
            raise asyncio.CancelledError
        return await commit(items)

    group = GroupCommit(
        cancelled_first, max_batch=9, max_pending=9, max_in_flight=2, min_parallel_batch=2
    )
    tasks = await submitted(group, (1,))
    tasks += await submitted(group, (2, 3))
    tasks += await submitted(group, (4,))
    first.set()
    await turn()
    assert tasks[0].cancelled() and not tasks[2].done()
    commit.finish()
    assert await outcomes(tasks[1:]) == [["r2", "r3"], ["r4"]]


async def test_failed_commit_raises_for_every_submitter_of_its_batch_only():
    commit = Commit(broken=[3])
    group = grouped(commit)
    before = await submitted(group, (1,))
    within = await submitted(group, (2,), (3,), (4,))
    commit.finish(1)
    await turn()
    after = await submitted(group, (5,))
    commit.finish()
    assert await outcomes(before + after) == [["r1"], ["r5"]]
    assert [type(each) for each in await outcomes(within)] == [BrokenError] * 3
    assert commit.batches == [[1], [2, 3, 4], [5]]


async def test_submit_across_batches_raises_once_all_have_ended_if_one_fails():
    commit = Commit(broken=[4])
    tasks = await submitted(grouped(commit, max_batch=2), (1, 2, 3, 4, 5))
    commit.finish(2)
    await turn()
    assert not tasks[0].done()
    commit.finish(1)
    assert [type(each) for each in await outcomes(tasks)] == [BrokenError]
    assert commit.batches == [[1, 2], [3, 4], [5]]


async def test_submit_to_a_full_queue_takes_none_of_the_items():
    commit = Commit()
    group = grouped(commit, max_pending=3)
    tasks = await submitted(group, (1,), (2, 3))
    assert commit.batches == [[1, 2, 3]]
    tasks += await submitted(group, (4, 5))
    with pytest.raises(QueueFullError):
        await group.submit(6, 7)
    tasks += await submitted(group, (8,))
    with pytest.raises(QueueFullError):
        await group.submit(9)
    commit.finish()
    assert await outcomes(tasks) == [["r1"], ["r2", "r3"], ["r4", "r5"], ["r8"]]
    assert commit.batches == [[1, 2, 3], [4, 5, 8]]


async def test_submit_succeeds_again_once_a_full_queue_is_committed():
    commit = Commit()
    group = grouped(commit, max_pending=2)
    tasks = await submitted(group, (1,))
    tasks += await submitted(group, (2, 3))
    with pytest.raises(QueueFullError):
        await group.submit(4)
    commit.finish(1)
    await turn()
    tasks += await submitted(group, (5, 6))
    commit.finish()
    assert await outcomes(tasks) == [["r1"], ["r2", "r3"], ["r5", "r6"]]


async def test_max_pending_bounds_the_weight_and_not_the_number():
    commit = Commit()
    group = grouped(commit, max_pending=100, weigh=lambda item: item)
    tasks = await submitted(group, (1,))
    tasks += await submitted(group, (60,))
    with pytest.raises(QueueFullError):
        await group.submit(41)
    tasks += await submitted(group, (40,))
    commit.finish()
    assert await outcomes(tasks) == [["r1"], ["r60"], ["r40"]]


async def test_submit_larger_than_max_pending_is_taken_while_nothing_is_pending():
    commit = Commit()
    tasks = await submitted(grouped(commit, max_pending=2), (1, 2, 3))
    commit.finish()
    assert await outcomes(tasks) == [["r1", "r2", "r3"]]


async def test_batch_never_exceeds_max_batch_unless_one_item_does():
    commit = Commit()
    group = grouped(commit, max_batch=10, weigh=lambda item: item)
    tasks = await submitted(group, (1,))
    tasks += await submitted(group, (4, 6), (5,), (20,), (1, 9), (10,))
    commit.finish()
    await outcomes(tasks)
    assert commit.batches == [[1], [4, 6], [5], [20], [1, 9], [10]]


@pytest.mark.parametrize("when", ["waiting", "in_flight"])
async def test_cancelled_submitter_does_not_cancel_the_commit_of_others(when):
    commit = Commit()
    group = grouped(commit)
    first = await submitted(group, (1,))
    tasks = await submitted(group, (2,), (3, 4), (5,))
    if when == "in_flight":
        commit.finish(1)
        await turn()
        assert commit.batches[-1] == [2, 3, 4, 5]
    tasks[1].cancel()
    await turn()
    assert tasks[1].cancelled()
    assert not any(task.done() for task in (tasks[0], tasks[2]))
    commit.finish()
    assert await outcomes([*first, tasks[0], tasks[2]]) == [["r1"], ["r2"], ["r5"]]
    assert commit.batches == [[1], [2, 3, 4, 5]]
    assert await outcomes(await submitted(group, (6,))) == [["r6"]]


async def test_drain_waits_for_everything_including_late_submissions():
    commit = Commit(broken=[2])
    group = grouped(commit)
    tasks = await submitted(group, (1,), (2,))
    drained = asyncio.create_task(group.drain())
    tasks += await submitted(group, (3,))
    commit.finish(1)
    await turn()
    assert commit.batches == [[1, 2], [3]] and not drained.done()
    commit.finish(1)
    assert await outcomes([drained]) == [None]
    await turn()
    assert all(task.done() for task in tasks)
    assert [type(each) for each in await outcomes(tasks)] == [BrokenError, BrokenError, list]


async def test_drain_returns_at_once_while_idle_and_no_task_is_left():
    commit = Commit()
    group = grouped(commit)
    await asyncio.wait_for(group.drain(), 5)
    commit.finish()
    await outcomes(await submitted(group, (1,)))
    await asyncio.wait_for(group.drain(), 5)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_submit_raises_if_the_commit_returns_too_few_results():
    async def short(_):
        return ["only one"]

    group = GroupCommit(short, max_batch=9, max_pending=9)
    with pytest.raises(ValueError, match="shorter"):
        await asyncio.wait_for(group.submit(1, 2), 5)


async def test_cancelled_commit_cancels_every_submitter():
    async def cancelled(_):
        raise asyncio.CancelledError

    group = GroupCommit(cancelled, max_batch=1, max_pending=9)
    waiting = [asyncio.create_task(group.submit(number)) for number in range(3)]
    done, pending = await asyncio.wait(waiting, timeout=5)
    assert not pending
    assert all(task.cancelled() for task in done)


async def test_commit_cancelled_before_its_start_cancels_its_submitters_only():
    """As when a loop that ends cancels all its tasks."""
    commit = Commit()
    group = grouped(commit)
    before = asyncio.all_tasks()
    waiting = [asyncio.ensure_future(group.submit(number)) for number in (1, 2)]
    await asyncio.sleep(0)  # both have submitted, and nothing more
    [flight] = asyncio.all_tasks() - before - {*waiting}
    flight.cancel()
    await asyncio.wait(waiting, timeout=5)
    assert all(task.cancelled() for task in waiting)
    assert commit.batches == []
    await asyncio.wait_for(group.drain(), 5)
    commit.finish()
    assert await asyncio.wait_for(group.submit(3), 5) == ["r3"]


async def test_submit_of_no_items_commits_nothing():
    commit = Commit()
    assert await asyncio.wait_for(grouped(commit).submit(), 5) == []
    assert commit.batches == []


@pytest.mark.parametrize("max_in_flight", [1, 3])
@pytest.mark.parametrize("seed", range(5))
async def test_submit_returns_the_right_results_under_random_load(seed, max_in_flight):
    rng = random.Random(seed)
    commit = Commit()
    group = grouped(
        commit, max_batch=7, max_pending=10_000, max_in_flight=max_in_flight, min_parallel_batch=4
    )
    numbers = iter(range(10_000))
    submissions, tasks = [], []
    for _ in range(200):
        submissions.append([next(numbers) for _ in range(rng.randrange(1, 5))])
        tasks.append(asyncio.create_task(group.submit(*submissions[-1])))
        if rng.random() < 0.3:
            commit.finish(rng.randrange(3))
            await asyncio.sleep(0)
    commit.finish()
    expected = [[f"r{number}" for number in each] for each in submissions]
    assert await outcomes(tasks) == expected
    assert [*chain(*commit.batches)] == [*chain(*submissions)]
    assert max(map(len, commit.batches)) == 7
    assert commit.most_in_flight == max_in_flight


async def test_commit_runs_in_the_context_of_no_submitter():
    """Or its log lines and spans would belong to whoever happened to be first."""
    whose = contextvars.ContextVar("whose", default="nobody's")
    seen = []

    async def commit(items):
        seen.append(whose.get())
        return items

    group = GroupCommit(commit, max_batch=1, max_pending=10)
    whose.set("mine")
    assert await group.submit(1, 2) == [1, 2]
    assert seen == ["nobody's", "nobody's"]
    assert whose.get() == "mine"


async def test_submit_is_refused_while_a_commit_runs_longer_than_max_wait_s(monkeypatch):
    now = 100.0
    monkeypatch.setattr("wds.concurrency.group_commit.time.monotonic", lambda: now)
    commit = Commit()
    group = grouped(commit, max_wait_s=2)
    tasks = await submitted(group, (1,), (2,))
    now += 2
    group.check()
    tasks += await submitted(group, (3,))
    now += 0.1
    with pytest.raises(QueueFullError):
        group.check()
    with pytest.raises(QueueFullError):
        await group.submit(4)
    commit.finish()
    assert await outcomes(tasks) == [["r1"], ["r2"], ["r3"]]
    group.check()
    assert await group.submit(5) == ["r5"]
    assert 4 not in chain.from_iterable(commit.batches)


async def test_max_wait_s_applies_to_the_longest_of_several_commits(monkeypatch):
    now = 100.0
    monkeypatch.setattr("wds.concurrency.group_commit.time.monotonic", lambda: now)
    commit = Commit()
    group = grouped(commit, max_wait_s=2, max_in_flight=2)
    tasks = await submitted(group, (1,))
    now += 1.5
    tasks += await submitted(group, (2,))
    assert commit.in_flight == 2
    now += 1
    with pytest.raises(QueueFullError):
        group.check()
    commit.finish(1)
    await turn()
    group.check()
    commit.finish()
    assert await outcomes(tasks) == [["r1"], ["r2"]]


async def test_max_wait_s_counts_from_each_commits_own_start(monkeypatch):
    now = 100.0
    monkeypatch.setattr("wds.concurrency.group_commit.time.monotonic", lambda: now)
    commit = Commit()
    group = grouped(commit, max_wait_s=2)
    tasks = await submitted(group, (1,), (2,))
    now += 5
    commit.finish(1)
    await turn()
    group.check()
    commit.finish()
    assert await outcomes(tasks) == [["r1"], ["r2"]]
