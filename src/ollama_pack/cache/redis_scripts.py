"""What happens in one step inside of Redis: the scripts, and the names of the keys.

All keys of a scope have its tag in braces, so they are on one node of a cluster and one script may use them.
Commands of Redis 7 and Valkey 8 alone, no modules. Times are milliseconds of the server's clock. A server at
its `maxmemory` takes no leases and no entries, but streams that have begun go on to their end.

| key | type | holds |
|---|---|---|
| `{scope}:m` | hash | `epoch`; `fence`, the last one given out |
| `{scope}:e:<slot>` | hash | an entry: `epoch`, `fence`, `made`, `sealed` |
| `{scope}:l:<slot>` | string | the lease, which allows to commit: `<token> <fence> <epoch>` |
| `{scope}:g:<token>` | string | a generation is alive; it may outlive its lease, after a flush |
| `{scope}:f:<token>` | sorted set | who follows it, by when they are forgotten |
| `{scope}:s:<token>` | stream | its records, `0-1`, `0-2`, … |
| `{scope}:a`, `:x`, `:b` | sorted sets, hash | of each slot: made at, ends at; bytes, and `*` for the sum |
| `{label}:k` | sorted set | `<scope>/<slot>` by when they end |
| `scopes` | sorted set | the tags of all scopes, by when they were new |
| `counts` | hash | figures of all processes |
"""

from ollama_pack.base.redis import lua_script

REDIS_PREFIX = "ollama_pack:cache:"


_CLOCK = """
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function whole(number) return string.format('%.0f', number) end
"""

_NOW = _CLOCK + "local now = clock()\n"

_FORGET = """
local function forget(slot, ages, ends, sizes)
  local size = redis.call('HGET', sizes, slot)
  if size then
    redis.call('HDEL', sizes, slot)
    redis.call('HINCRBY', sizes, '*', -size)
  end
  redis.call('ZREM', ages, slot)
  redis.call('ZREM', ends, slot)
end
"""

# KEYS: l. Whether the lease is of a token
_LEADS = """
local function leads(token)
  local lease = redis.call('GET', KEYS[1])
  return lease and string.sub(lease, 1, #token + 1) == token .. ' '
end
"""

# KEYS: l, g. ARGV: token, lease time
_PROLONG = (
    _LEADS
    + """
local function prolong()
  if redis.call('PEXPIRE', KEYS[2], ARGV[2]) == 0 then return false end
  if leads(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
  return true
end
"""
)

# KEYS: m, e, l, g of this token. ARGV: token, mode, lease, follower, scope times, '1' to begin the scope,
# prefix of followers
ACQUIRE = lua_script(
    _CLOCK
    + """
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then
  if ARGV[6] ~= '1' then return {'new scope'} end
  -- from the clock, so that a scope that was forgotten never counts from an earlier number again
  epoch = whole(clock())
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'fence', epoch)
  redis.call('PEXPIRE', KEYS[1], ARGV[5])  -- each commit prolongs it, to outlive the entry
end
if ARGV[2] == 'read' then
  local entry = redis.call('HMGET', KEYS[2], 'epoch', 'made', 'fence', 'sealed')
  if entry[1] == epoch then return {'kept', entry[4], entry[3], clock() - entry[2]} end
  local lease = redis.call('GET', KEYS[3])
  if lease then
    local leader, fence, leased = string.match(lease, '(%S+) (%S+) (%S+)')
    if leased == epoch then
      if leader == ARGV[1] then return {'lease', fence, epoch} end
      -- not among KEYS, because only the server knows who leads; it has the tag of the scope
      local followers = ARGV[7] .. leader
      redis.call('ZADD', followers, clock() + ARGV[4], ARGV[1])
      redis.call('PEXPIRE', followers, ARGV[4])
      return {'running', leader}
    end
  end
end
local fence = whole(redis.call('HINCRBY', KEYS[1], 'fence', 1))
if ARGV[2] == 'read' then
  redis.call('SET', KEYS[3], ARGV[1] .. ' ' .. fence .. ' ' .. epoch, 'PX', ARGV[3])
  redis.call('SET', KEYS[4], fence, 'PX', ARGV[3])
end
return {'lease', fence, epoch}
"""
)

# KEYS: m, e
FIND = lua_script(
    _CLOCK
    + """
local entry = redis.call('HMGET', KEYS[2], 'epoch', 'made', 'fence', 'sealed')
if not entry[1] or entry[1] ~= redis.call('HGET', KEYS[1], 'epoch') then return {} end
return {entry[4], entry[3], clock() - entry[2]}
"""
)

# KEYS: l, g, s. ARGV: token, lease, stream times, place of the first record, records
APPEND = lua_script(
    _PROLONG
    + """
if not prolong() then return 0 end
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
local known = last and tonumber(string.sub(last[1], 3)) or 0
for i = 5, #ARGV do
  local place = ARGV[4] + i - 5
  if place > known then redis.call('XADD', KEYS[3], string.format('0-%d', place), 'r', ARGV[i]) end
end
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return 1
"""
)

# KEYS: l, g, f. ARGV: token, lease time
RENEW = lua_script(
    _NOW
    + _PROLONG
    + """
if not prolong() then return -1 end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
return redis.call('ZCARD', KEYS[3])
"""
)

# KEYS: l, g, f. ARGV: token
LEAVE = lua_script(
    _NOW
    + _LEADS
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
local followers = redis.call('ZCARD', KEYS[3])
if followers == 0 then
  if leads(ARGV[1]) then redis.call('DEL', KEYS[1]) end
  redis.call('DEL', KEYS[2])
end
return followers
"""
)

# KEYS: l, g, s. ARGV: token, stream time, place, record
_END = (
    _LEADS
    + """
local function finish(token, keep, place, record)
  if leads(token) then redis.call('DEL', KEYS[1]) end
  if redis.call('DEL', KEYS[2]) == 0 then return 0 end
  redis.call('XADD', KEYS[3], '0-' .. place, 'r', record)
  return redis.call('PEXPIRE', KEYS[3], keep)
end
"""
)

RELEASE = lua_script(_END + "return finish(ARGV[1], ARGV[2], ARGV[3], ARGV[4])")

# KEYS: l, g, s, a, x, b, m, e. ARGV: token, fence, epoch, shared, sealed, ttl, most entries, most bytes,
# slot, prefix of entries, place, record, stream time, scope time
COMMIT = lua_script(
    _NOW
    + _FORGET
    + _END
    + """
local entry = redis.call('HMGET', KEYS[8], 'epoch', 'fence')
local newer = entry[1] == ARGV[3] and tonumber(entry[2]) - tonumber(ARGV[2]) or -1
if newer == 0 then return 'stored' end  -- the answer to the first attempt was lost
local allowed = ARGV[4] ~= '1' or leads(ARGV[1])
local result = 'stored'
if redis.call('HGET', KEYS[7], 'epoch') ~= ARGV[3] then
  result = 'flushed'
elseif newer > 0 or not allowed then
  result = 'fenced'
else
  -- the first write of all: a full server refuses the whole script here, and nothing after its first write
  redis.call('HSET', KEYS[8], 'epoch', ARGV[3], 'fence', ARGV[2], 'made', whole(now), 'sealed', ARGV[5])
  -- of much, a part each time: the server does nothing else meanwhile
  for _, slot in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now, 'LIMIT', 0, 200)) do
    forget(slot, KEYS[4], KEYS[5], KEYS[6])
  end
  forget(ARGV[9], KEYS[4], KEYS[5], KEYS[6])
  redis.call('PEXPIRE', KEYS[8], ARGV[6])
  redis.call('ZADD', KEYS[4], now, ARGV[9])
  redis.call('ZADD', KEYS[5], now + ARGV[6], ARGV[9])
  redis.call('HSET', KEYS[6], ARGV[9], #ARGV[5])
  redis.call('HINCRBY', KEYS[6], '*', #ARGV[5])
  while redis.call('ZCARD', KEYS[4]) > tonumber(ARGV[7])
    or tonumber(redis.call('HGET', KEYS[6], '*')) > tonumber(ARGV[8]) do
    local oldest = redis.call('ZRANGE', KEYS[4], 0, 0)[1]
    if not oldest then break end
    -- not among KEYS, because only the server knows which it is; it has the tag of the scope
    redis.call('UNLINK', ARGV[10] .. oldest)
    forget(oldest, KEYS[4], KEYS[5], KEYS[6])
  end
  for i = 4, 7 do redis.call('PEXPIRE', KEYS[i], ARGV[14]) end
end
finish(ARGV[1], ARGV[13], ARGV[11], ARGV[12])
return result
"""
)

# KEYS: g, f. ARGV: follower, follower time
FOLLOW = lua_script(
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
"""
)

# Without a lease a generation goes on for its followers and cannot commit. KEYS: a, x, b, e, l. ARGV: slot,
# fence or ''
DISCARD = lua_script(
    _FORGET
    + """
if ARGV[2] == '' then redis.call('DEL', KEYS[5])
elseif redis.call('HGET', KEYS[4], 'fence') ~= ARGV[2] then return 0 end
forget(ARGV[1], KEYS[1], KEYS[2], KEYS[3])
return redis.call('DEL', KEYS[4])
"""
)

# KEYS: m. ARGV: scope time
FLUSH = lua_script(
    _NOW
    + """
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return 0 end
redis.call('HSET', KEYS[1], 'epoch', whole(math.max(now, epoch + 1)))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""
)

# After a flush, in pieces, so that the server is never held up for long. KEYS: a, x, b, m. ARGV: most, prefix
SWEEP = lua_script(
    _FORGET
    + """
local epoch = redis.call('HGET', KEYS[4], 'epoch')
local done = 0
for _, slot in ipairs(redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1)) do
  if redis.call('HGET', ARGV[2] .. slot, 'epoch') == epoch then break end
  redis.call('UNLINK', ARGV[2] .. slot)
  forget(slot, KEYS[1], KEYS[2], KEYS[3])
  done = done + 1
end
return done
"""
)

# KEYS: k. ARGV: member, ttl
LABEL = lua_script(
    _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], 'GT', now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[2])))
return 1
"""
)

# Forget a scope of which nothing is left, unless it was new again just now. KEYS: scopes. ARGV: tag, age
DROP_SCOPE = lua_script(
    _NOW
    + """
local new = redis.call('ZSCORE', KEYS[1], ARGV[1])
if new and tonumber(new) + ARGV[2] < now then return redis.call('ZREM', KEYS[1], ARGV[1]) end
return 0
"""
)

# KEYS: scopes. ARGV: tag
REGISTER = lua_script(
    _NOW
    + """
return redis.call('ZADD', KEYS[1], now, ARGV[1])
"""
)

ALL_SCRIPTS = (
    *(ACQUIRE, FIND, APPEND, RENEW, LEAVE, RELEASE, COMMIT, FOLLOW),
    *(DISCARD, FLUSH, SWEEP, LABEL, DROP_SCOPE, REGISTER),
)


class RedisNames:
    """The keys of a scope."""

    def __init__(self, scope: str) -> None:
        self._prefix = f"{REDIS_PREFIX}{{{scope}}}:"

    @property
    def meta(self) -> str:
        return self._of("m")

    @property
    def index(self) -> tuple[str, str, str]:
        """Ages, ends and sizes."""
        return self._of("a"), self._of("x"), self._of("b")

    @property
    def entries(self) -> str:
        """What all names of entries begin with."""
        return self._of("e:")

    def entry(self, slot: str) -> str:
        return self._of(f"e:{slot}")

    def lease(self, slot: str) -> str:
        return self._of(f"l:{slot}")

    @property
    def followers_of(self) -> str:
        """What all names of followers begin with."""
        return self._of("f:")

    def followers(self, token: str) -> str:
        return self._of(f"f:{token}")

    def generation(self, token: str) -> str:
        return self._of(f"g:{token}")

    def stream(self, token: str) -> str:
        return self._of(f"s:{token}")

    def _of(self, rest: str) -> str:
        return f"{self._prefix}{rest}"
