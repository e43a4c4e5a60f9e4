"""The rate limit over all dispatchers, held in Redis. The only module of delivery that uses Redis.

For each destination Redis keeps one sorted set: the instants, by Redis's own clock, for which a
request was allowed. A slot is one of these instants. The script grants the earliest instants
for which no window of `WINDOW_US` holds more than `limit` of them. So all dispatchers together
obey one limit without talking to each other.

From slots to requests: a slot may be used from its instant until `USE_WITHIN_US` later. Two
requests that are `limit` slots apart then leave at least `WINDOW_US - USE_WITHIN_US` = 1.02 s
apart, and 20 ms remain for the network to bring them closer together. This margin costs 3 % of
the allowance. Slots also lie `SPACING_US` apart, or `WINDOW_US / limit` if that is less: a
process that sends or receives a burst is late with the end of the burst, and a delay beyond the
margin would bring the end too close to the next burst.

A dispatcher measures a slot's instant with its monotonic clock. It assumes the worst about the
time that Redis's answer took, in both directions. So its wall clock does not matter, and a slow
answer can only make a slot unusable.

The keys contain the database's name: installations that share a Redis have limits of their own.

If Redis loses its memory, one window may be granted twice. Nothing else depends on Redis.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from msgspec import Struct
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from wds.domain.errors import LimiterUnavailableError, StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW_US = 1_030_000
USE_WITHIN_US = 10_000
SPACING_US = 20_000
TIMEOUT_S = 0.5
"""Seconds to wait for Redis. Not retried: a second reservation would charge twice."""
KEY = "{{wds:slots:{destination}}}:{database}"
"""The braces make a Redis in cluster mode put it where it puts `KEY_OF_0_1`, as a script requires:
https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags"""
KEY_OF_0_1 = "wds:slots:{destination}"
"""The key of version 0.1. Its slots are counted too: otherwise the first second after an upgrade
could have twice the limit. Redis forgets it within seconds of the last request of 0.1."""

# KEYS[1] the slots of one destination: member -> instant in microseconds
# KEYS[2] the same as version 0.1 named it, copied while KEYS[1] does not exist. The copy follows a
#       command that frees memory: then it and ZADD also work where memory is full.
# ARGV: limit, window, spacing, farthest (all but the first in microseconds), number of slots to
#       reserve, name prefix of new members, members to give back ...
# Returns {now, microseconds until another slot will be free, instant, instant, ...}.
# An instant beyond `farthest` was granted before Redis's clock stepped back, and is forgotten.
# New instants never precede old ones, so the instant `limit` places back decides.
_RESERVE = """
local key, limit = KEYS[1], tonumber(ARGV[1])
local window, spacing, farthest = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for i = 7, #ARGV do redis.call('ZREM', key, ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', key, '-inf', now - window)
if redis.call('EXISTS', key) == 0 then redis.call('ZUNIONSTORE', key, 1, KEYS[2]) end
redis.call('ZREMRANGEBYSCORE', key, now + farthest + 1, '+inf')
local function next_instant()
  local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2]
  local full = redis.call('ZRANGE', key, -limit, -limit, 'WITHSCORES')[2]
  local at = now
  if last and tonumber(last) + spacing > at then at = tonumber(last) + spacing end
  if full and tonumber(full) + window > at then
    at = tonumber(full) + window
  end
  return at
end
local answer = {now, 0}
for i = 1, tonumber(ARGV[5]) do
  local at = next_instant()
  if at - now > farthest then break end
  redis.call('ZADD', key, string.format('%.0f', at), ARGV[6] .. ':' .. i)
  answer[#answer + 1] = at
end
answer[2] = math.max(next_instant() - now - farthest, 0)
if #answer > 2 then redis.call('PEXPIRE', key, math.ceil((2 * window + farthest) / 1000)) end
return answer
"""


class Slot(Struct, frozen=True):
    """The right to send one request between two instants of `time.monotonic()`.

    A slot that became unusable while Redis's answer was on the way has `use_by < ready_at`.
    """

    name: str
    ready_at: float
    use_by: float


class Reservation(Struct, frozen=True):
    """The slots that were reserved, and the seconds until more can be."""

    slots: list[Slot]
    retry_in_s: float


class RateLimiter:
    """Allows `limit` requests in any second to each destination, over all dispatchers."""

    def __init__(self, url: str, limit: int, *, database: str, farthest_s: float) -> None:
        """Prepare a client. A slot lies at most `farthest_s` seconds ahead.

        All dispatchers with the same `database` share the limit.

        Raises:
            StartError: the URL is malformed. It is not repeated, because it may hold a password.
        """
        try:
            self._redis: Redis = Redis.from_url(
                url,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),
                retry_on_timeout=False,
            )
        except ValueError as error:
            msg = f"WDS_REDIS_URL cannot be used: {type(error).__name__}"
            raise StartError(msg) from error
        self._database = database
        self._limit = limit
        self._farthest_us = round(farthest_s * 1_000_000)
        self._reserve = self._redis.register_script(_RESERVE)

    async def reserve(
        self, destination: str, count: int, *, give_back: Sequence[Slot] = ()
    ) -> Reservation:
        """Reserve up to `count` slots, in order, and return the slots of `give_back` to the pool.

        Takes one round trip for any count. Give back only slots that no request used or
        will use.

        Raises:
            LimiterUnavailableError: Redis did not answer in time. Slots may have been charged;
                they pass unused, so the limit still holds.
        """
        name = uuid.uuid4().hex
        requested_at = time.monotonic()
        try:
            now, retry_in, *instants = await self._reserve(
                keys=[
                    KEY.format(database=self._database, destination=destination),
                    KEY_OF_0_1.format(destination=destination),
                ],
                args=[
                    self._limit,
                    WINDOW_US,
                    min(SPACING_US, WINDOW_US // self._limit),
                    self._farthest_us,
                    count,
                    name,
                    *(slot.name for slot in give_back),
                ],
            )
        except (RedisError, OSError, TimeoutError) as error:
            raise LimiterUnavailableError(type(error).__name__) from error
        answered_at = time.monotonic()
        return Reservation(
            [
                Slot(
                    f"{name}:{number}",
                    ready_at=answered_at + (instant - now) / 1e6,
                    use_by=requested_at + (instant - now + USE_WITHIN_US) / 1e6,
                )
                for number, instant in enumerate(instants, start=1)
            ],
            retry_in / 1e6,
        )

    async def ping(self) -> None:
        """Return if Redis can reserve slots. None is reserved.

        Raises:
            LimiterUnavailableError: Redis does not answer in time.
        """
        await self.reserve("ping", 0)

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()
