"""Budgets in Redis or Valkey, for any number of replicas. Each step is one run of one script.

All keys have one tag in braces, so they are on one node of a cluster. Counts are whole numbers: milliseconds
of GPU time, tokens, requests.

| key | type | holds |
|---|---|---|
| `…c:<counter>` | hash | `start` of the period that it counts, `used` in it |
| `…r:<counter>` | sorted set | `<token> <amount>` of each reservation, by when it expires |
| `…s:<token>` | string | a reservation that was settled, for as long as it might be settled again |
| `…all` | sorted set | all counters, by when they were used last |
"""

from collections.abc import Sequence
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.base.redis import (
    RedisClient,
    connection_pool_of,
    lua_script,
    redis_fault,
    redis_faults,
    run_script,
)
from ollama_pack.budgets.errors import BudgetStoreError
from ollama_pack.budgets.store import (
    RESERVATION_SECONDS,
    SETTLED_SECONDS,
    SKEW_SECONDS,
    Count,
    Limit,
    StoredCount,
)

BUDGET_KEYS = "ollama_pack:{budgets}:"
_MARGIN_SECONDS = 86_400  # that a counter outlives the period after its own
_LISTED_AT_ONCE = 500

# One script for all steps, so that there is one place for what a period is. ARGV: step, now, token, then by
# step; for each counter: name, amount, burst, previous start, start, end, strict, what to add.
_BUDGET_SCRIPT = lua_script("""
local keys, step, now, token = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local skew, life, remembered, margin = tonumber(ARGV[4]), ARGV[5], ARGV[6], tonumber(ARGV[7])
local time = redis.call('TIME')
local clock = time[1] * 1000 + math.floor(time[2] / 1000)
local function whole(number) return string.format('%.0f', number) end

local function reserved(name)
  local sum = 0
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', keys .. 'r:' .. name, '(' .. clock, '+inf')) do
    sum = sum + tonumber(string.match(entry, ' (%d+)$'))
  end
  return sum
end

local function stored(name, amount, burst, before, start)
  local found = redis.call('HMGET', keys .. 'c:' .. name, 'start', 'used')
  if not found[1] then return start, 0 end
  local counted, used = tonumber(found[1]), tonumber(found[2])
  if counted < start then
    if counted ~= before then return start, 0 end
    return start, math.min(math.max(0, used - amount), burst)
  end
  if counted <= now + skew then return counted, used end
  return start, used
end

if step == 'list' then
  local answer = {}
  local names = redis.call('ZRANGE', keys .. 'all', token, token + ARGV[8] - 1)
  for _, name in ipairs(names) do
    local found = redis.call('HMGET', keys .. 'c:' .. name, 'start', 'used')
    answer[#answer + 1] = {name, found[1] or '0', found[2] or '0', whole(reserved(name))}
  end
  return answer
end

local counters = {}
for i = 8, #ARGV, 8 do
  local counter = {name = ARGV[i], amount = tonumber(ARGV[i + 1]), burst = tonumber(ARGV[i + 2]),
    keep = ARGV[i + 5] * 2 - ARGV[i + 4] - now + margin,
    strict = ARGV[i + 6] == '1', add = tonumber(ARGV[i + 7])}
  counter.start, counter.used =
    stored(counter.name, counter.amount, counter.burst, tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4]))
  counters[#counters + 1] = counter
end

if step == 'settle' then
  if not redis.call('SET', keys .. 's:' .. token, '1', 'NX', 'PX', remembered) then return 0 end
  for _, counter in ipairs(counters) do
    local reservations = keys .. 'r:' .. counter.name
    for _, entry in ipairs(redis.call('ZRANGE', reservations, 0, -1)) do
      if string.sub(entry, 1, #token + 1) == token .. ' ' then redis.call('ZREM', reservations, entry) end
    end
    local key = keys .. 'c:' .. counter.name
    redis.call('HSET', key, 'start', whole(counter.start), 'used', whole(counter.used + counter.add))
    redis.call('EXPIRE', key, whole(math.max(margin, counter.keep)))
    redis.call('ZADD', keys .. 'all', clock, counter.name)
  end
  redis.call('ZREMRANGEBYSCORE', keys .. 'all', '-inf', clock - 70 * 86400000)
  return 1
end

local answer, full = {}, false
for _, counter in ipairs(counters) do
  local held = reserved(counter.name)
  answer[#answer + 1] = {whole(counter.used), whole(held)}
  full = full or (counter.strict and counter.used + held >= counter.amount + counter.burst)
end
if step == 'counts' then return {1, answer} end
if step == 'reserve' and full then return {0, answer} end
for _, counter in ipairs(counters) do
  local reservations = keys .. 'r:' .. counter.name
  redis.call('ZREMRANGEBYSCORE', reservations, '-inf', clock)
  redis.call('ZADD', reservations, clock + life, token .. ' ' .. whole(counter.add))
  redis.call('PEXPIRE', reservations, life)
end
return {1, answer}
""")


class RedisBudgetStore:
    """See `BudgetStore`."""

    def __init__(self, client: RedisClient) -> None:
        """Connect nothing yet.

        Args:
            client: as `redis_client` makes it. The store changes and closes it.
        """
        self._client = client
        if connection_pool_of(client) is not None:  # a cluster's client needs them for itself
            client.response_callbacks.clear()  # answers as the server gives them
        self._held: dict[str, tuple[tuple[Limit, ...], tuple[int, ...]]] = {}

    async def reserve(
        self, token: str, limits: Sequence[Limit], amounts: Sequence[int], now: float, *, always: bool
    ) -> tuple[bool, tuple[Count, ...]]:
        step = "always" if always else "reserve"
        reserved, counts = await self._run(step, token, now, limits, amounts)
        if reserved:
            self._held[token] = tuple(limits), tuple(amounts)
        return bool(reserved), _counts_in(counts)

    async def settle(self, token: str, limits: Sequence[Limit], spent: Sequence[int], now: float) -> bool:
        self._held.pop(token, None)
        return bool(await self._run("settle", token, now, limits, spent))

    async def renew(self, tokens: Sequence[str], now: float) -> None:
        for token in tokens:
            if held := self._held.get(token):
                await self._run("always", token, now, *held)

    async def counts(self, limits: Sequence[Limit], now: float) -> tuple[Count, ...]:
        return _counts_in((await self._run("counts", "", now, limits, [0] * len(limits)))[1])

    async def all_counts(self, now: float) -> tuple[StoredCount, ...]:
        found: list[StoredCount] = []
        while True:
            page = await self._call("list", now, len(found), _LISTED_AT_ONCE)
            found += [StoredCount(name.decode(), *map(int, figures)) for name, *figures in page]
            if len(page) < _LISTED_AT_ONCE:
                return tuple(found)

    async def close(self) -> None:
        await self._client.aclose()

    async def _run(
        self, step: str, token: str, now: float, limits: Sequence[Limit], amounts: Sequence[int]
    ) -> Any:
        values: list[str | int] = []
        for limit, amount in zip(limits, amounts, strict=True):
            period = limit.period
            values += [limit.counter, limit.amount, limit.burst, period.before, period.start, period.end]
            values += [int(limit.strict), amount]
        return await self._call(step, now, token, *values)

    async def _call(self, step: str, now: float, token: str | int, *values: str | int) -> Any:
        life, remembered = int(RESERVATION_SECONDS * 1000), int(SETTLED_SECONDS * 1000)
        fixed = step, int(now), token, SKEW_SECONDS, life, remembered, _MARGIN_SECONDS
        send = self._client.execute_command
        try:
            return await run_script(send, _BUDGET_SCRIPT, [BUDGET_KEYS], *fixed, *values)
        except redis_faults() as error:
            raise BudgetStoreError(message("Redis failed: {error}", error=redis_fault(error))) from error


def _counts_in(answer: Any) -> tuple[Count, ...]:
    return tuple(Count(int(used), int(held)) for used, held in answer)
