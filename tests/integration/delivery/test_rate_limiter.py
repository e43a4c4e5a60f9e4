"""The rate limit on a real Redis: what many replicas are granted together."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest
from redis.asyncio import Redis

from tests.grants import recording_grants
from tests.support import most_in_any_second
from wds.delivery.rate_limiter import SPACING_US, USE_WITHIN_US, WINDOW_US, Limiter
from wds.domain.errors import LimiterUnavailableError
from wds.local import embedded_engines


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Let a Redis that stalls answer late: what it answers is judged here."""
    monkeypatch.setattr("wds.delivery.rate_limiter.TIMEOUT_S", 15.0)


@pytest.fixture
async def redis(settings):
    client = Redis.from_url(settings.redis_url)
    yield client
    await client.aclose()


async def grants(settings, destinations: list[str], limit: int, each: int) -> list[float]:
    """Let one replica per destination name reserve `each` slots at once; return when."""
    replicas = [Limiter(settings.redis_url, limit, farthest_s=200) for _ in destinations]

    async def work(replica: Limiter, destination: str) -> list[float]:
        slots = []
        for number in range(each):
            slots += (await replica.reserve(destination, 1 + number % 3)).slots
        # A slot whose answer was too slow may not be used by anybody.
        return [slot.ready_at for slot in slots if slot.ready_at <= slot.use_by]

    granted = await asyncio.gather(*map(work, replicas, destinations))
    for replica in replicas:
        await replica.close()
    return [instant for instants in granted for instant in instants]


@pytest.mark.alone
@pytest.mark.parametrize("limit", [1, 3, 50])
async def test_all_replicas_together_are_granted_no_more_than_the_limit(
    settings, destination, limit
):
    instants = await grants(settings, [destination] * 5, limit, each=12)
    assert len(instants) >= 5 * 12 * 2 * 0.9
    assert most_in_any_second(instants) <= limit
    seconds_needed = (5 * 12 * 2 - 1) / limit
    assert max(instants) - min(instants) <= seconds_needed / 0.95


async def test_control_replicas_that_do_not_share_a_window_exceed_the_limit(settings, destination):
    separate = [f"{destination}-{number}" for number in range(5)]
    assert most_in_any_second(await grants(settings, separate, 3, each=12)) > 3


async def test_slots_come_close_together_up_to_the_limit_and_then_one_window_apart(
    limiter, destination
):
    first = await limiter.reserve(destination, 4)
    now, second, third, fourth = (slot.ready_at for slot in first.slots)
    assert second - now == pytest.approx(SPACING_US / 1e6, abs=1e-6)
    assert third - second == pytest.approx(SPACING_US / 1e6, abs=1e-6)
    assert fourth - now == pytest.approx(WINDOW_US / 1e6, abs=1e-6)


@pytest.mark.parametrize("limit", [50, 200])
async def test_slots_of_a_high_limit_are_spread_over_the_window(settings, destination, limit):
    limiter = Limiter(settings.redis_url, limit, farthest_s=1.5)
    slots = (await limiter.reserve(destination, limit + 1)).slots
    await limiter.close()
    gaps = [later.ready_at - slot.ready_at for slot, later in pairwise(slots)]
    share = WINDOW_US / 1e6 / limit
    assert min(gaps) == pytest.approx(min(SPACING_US / 1e6, share), abs=2e-6)
    assert slots[-1].ready_at - slots[0].ready_at == pytest.approx(WINDOW_US / 1e6, abs=1e-6)


async def test_no_slot_lies_further_ahead_than_the_bound_and_the_answer_says_when_to_ask(
    limiter, destination
):
    granted = await limiter.reserve(destination, 100)
    ahead = max(slot.ready_at for slot in granted.slots) - time.monotonic()
    assert ahead <= 1.5
    assert len(granted.slots) == 6  # now, and one window from now
    assert 0 < granted.retry_in_s <= WINDOW_US / 1e6
    again = await limiter.reserve(destination, 1)
    assert again.slots == []


async def test_an_unused_slot_that_is_given_back_goes_to_the_next_who_asks(limiter, destination):
    first = await limiter.reserve(destination, 3)
    kept = await limiter.reserve(destination, 1, give_back=first.slots[:1])
    assert kept.slots[0].ready_at - time.monotonic() < 0.5
    instants = [slot.ready_at for slot in (*first.slots[1:], *kept.slots)]
    more = await limiter.reserve(destination, 1)
    assert most_in_any_second([*instants, more.slots[0].ready_at]) <= 3


async def test_giving_back_never_lets_more_than_the_limit_through(limiter, destination):
    """Hand back every other slot, over and over: those kept must still obey the limit."""
    kept: list[float] = []
    back = []
    for number in range(40):
        granted = await limiter.reserve(destination, 1, give_back=back)
        back = []
        for slot in granted.slots:
            if number % 2:
                kept.append(slot.ready_at)
            else:
                back.append(slot)
        if not granted.slots:
            await asyncio.sleep(granted.retry_in_s)
    assert len(kept) >= 6
    assert most_in_any_second(kept) <= 3


async def test_a_recording_of_redis_has_what_was_granted_and_not_given_back(
    settings, limiter, destination
):
    async with recording_grants(settings.redis_url, destination) as recorded:
        first = (await limiter.reserve(destination, 3)).slots
        await limiter.reserve(f"{destination}-other", 3)
        assert len(await recorded.instants()) == 3
        more = (await limiter.reserve(destination, 1, give_back=first[1:])).slots
        assert len(more) == 1
        kept = await recorded.instants()
    assert len(kept) == 2
    apart = more[0].ready_at - first[0].ready_at
    assert kept[1] - kept[0] == pytest.approx(apart, abs=0.05)


@pytest.mark.parametrize("limit", [3, 4])
async def test_control_a_recording_shows_one_grant_too_many_in_a_second(
    settings, destination, limit
):
    async with recording_grants(settings.redis_url, destination) as recorded:
        await grants(settings, [destination] * 5, limit, each=4)
        assert most_in_any_second(await recorded.instants()) == limit


async def test_a_slot_whose_answer_was_slow_cannot_be_used(limiter, redis, destination):
    await redis.execute_command("CLIENT", "PAUSE", 100, "ALL")
    [slot] = (await limiter.reserve(destination, 1)).slots
    assert slot.use_by < slot.ready_at
    prompt = [(await limiter.reserve(f"{destination}-{n}", 1)).slots[0] for n in range(9)]
    assert max(slot.use_by - slot.ready_at for slot in prompt) > USE_WITHIN_US / 1e6 / 2


async def test_a_batch_of_slots_costs_one_round_trip(limiter, redis, destination):
    await limiter.reserve(destination, 1)
    before = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    await limiter.reserve(destination, 5)
    after = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert after - before == 1


async def test_a_flushed_script_is_loaded_again(limiter, redis, destination):
    await limiter.reserve(destination, 1)
    await redis.script_flush()
    assert len((await limiter.reserve(destination, 1)).slots) == 1


async def test_the_window_is_forgotten_when_it_no_longer_matters(limiter, redis, destination):
    await limiter.reserve(destination, 1)
    remaining = await redis.pttl(f"wds:slots:{destination}")
    assert 0 < remaining <= (2 * WINDOW_US + 1_500_000) / 1000 + 1


async def test_slots_from_before_redis_clock_stepped_back_are_forgotten(
    limiter, redis, destination
):
    in_an_hour = time.time() * 1e6 + 3600e6
    await redis.zadd(f"wds:slots:{destination}", {f"old:{n}": in_an_hour for n in range(3)})
    granted = await limiter.reserve(destination, 1)
    assert len(granted.slots) == 1
    assert granted.slots[0].ready_at - time.monotonic() < 0.1


async def test_without_redis_nothing_is_granted(destination):
    limiter = Limiter(f"redis://127.0.0.1:{embedded_engines.free_port()}/0", 3, farthest_s=1)
    with pytest.raises(LimiterUnavailableError):
        await limiter.reserve(destination, 1)
    with pytest.raises(LimiterUnavailableError):
        await limiter.ping()
    await limiter.close()


async def test_a_redis_without_memory_to_spare_still_holds_the_limit(tmp_path, destination):
    server = await embedded_engines.start_redis(tmp_path, extra=("--maxmemory", "1"))
    limiter = Limiter(f"redis://127.0.0.1:{server.port}/0", 3, farthest_s=1)
    try:
        await limiter.ping()
        granted = [await limiter.reserve(destination, 1) for _ in range(5)]
        assert sum(len(each.slots) for each in granted) == 3
    finally:
        await limiter.close()
        await server.stop()
