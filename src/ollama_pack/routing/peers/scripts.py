"""What happens in one step inside of Redis, for workers that share a fleet.

All keys have one hash tag, so a cluster keeps them on one node and one script may use them. Commands of Redis
7 and Valkey 8 alone, no modules. Times are milliseconds of the server's clock.

| key | type | holds |
|---|---|---|
| `events` | stream | what workers tell each other, field `m`; the last few hundred messages |
| `slots:<node>:<weights>` | sorted set | the requests that hold a slot, by when they are forgotten |
| `load:<node>` | hash | who may load there: `id`, `blob`, `victims`, separated by spaces |

Nodes and weights are named by hashes, prompts and users appear as hashes alone, and chats not at all.
"""

from ollama_pack.base.redis import lua_script

SHARE_PREFIX = "ollama_pack:{fleet}:1:"
EVENTS_KEPT = 512
EVENTS_MS = 3_600_000
CLAIM_MS = 8_000

_SHARE_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function holders(key)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  return redis.call('ZRANGE', key, 0, -1)
end
local function tell(key, payload, kept, milliseconds)
  if payload ~= '' then
    redis.call('XADD', key, 'MAXLEN', '~', kept, '*', 'm', payload)
    redis.call('PEXPIRE', key, milliseconds)
  end
end
local function take(slots, id, milliseconds)
  redis.call('ZADD', slots, now + milliseconds, id)
  redis.call('PEXPIRE', slots, milliseconds)
end
"""

# KEYS: slots, load, events, slots of each victim.
# ARGV: id, payload, kept, event time, slots, claim time, 1 when it loads, hash of the weights, of victims.
# Answers {} when granted, else {hash of the weights whose slots are taken, or '', holder, …}.
CLAIM_SLOT = (
    _SHARE_NOW
    + """
local id, loads, blob = ARGV[1], ARGV[7] == '1', ARGV[8]
local loading = redis.call('HMGET', KEYS[2], 'id', 'blob', 'victims')
if loading[1] and loading[1] ~= id then
  if loads or string.find(loading[3], blob, 1, true) then return {'', loading[1]} end
end
if loads then
  for number = 4, #KEYS do
    local there = holders(KEYS[number])
    if #there > 0 then return {ARGV[number + 5], unpack(there)} end
  end
end
local here = holders(KEYS[1])
if #here >= tonumber(ARGV[5]) and not redis.call('ZSCORE', KEYS[1], id) then
  return {blob, unpack(here)}
end
take(KEYS[1], id, tonumber(ARGV[6]))
if loads then
  redis.call('HSET', KEYS[2], 'id', id, 'blob', blob, 'victims', table.concat(ARGV, ' ', 9))
  redis.call('PEXPIRE', KEYS[2], ARGV[6])
end
tell(KEYS[3], ARGV[2], ARGV[3], ARGV[4])
return {}
"""
)

# KEYS: slots, load, events. ARGV: id, payload, kept, event time, slots (unused), claim time
RENEW_SLOT = (
    _SHARE_NOW
    + """
take(KEYS[1], ARGV[1], tonumber(ARGV[6]))
if redis.call('HGET', KEYS[2], 'id') == ARGV[1] then redis.call('PEXPIRE', KEYS[2], ARGV[6]) end
"""
)

# KEYS: slots, load, events. ARGV: id, payload, kept, event time
RELEASE_SLOT = (
    _SHARE_NOW
    + """
redis.call('ZREM', KEYS[1], ARGV[1])
if redis.call('HGET', KEYS[2], 'id') == ARGV[1] then redis.call('DEL', KEYS[2]) end
tell(KEYS[3], ARGV[2], ARGV[3], ARGV[4])
"""
)

# KEYS: slots, load, events. ARGV: id, payload, kept, event time
LOADED_SLOT = (
    _SHARE_NOW
    + """
if redis.call('HGET', KEYS[2], 'id') == ARGV[1] then redis.call('DEL', KEYS[2]) end
tell(KEYS[3], ARGV[2], ARGV[3], ARGV[4])
"""
)

# KEYS: events. ARGV: nothing, payload, kept, event time
TELL_ALL = (
    _SHARE_NOW
    + """
tell(KEYS[1], ARGV[2], ARGV[3], ARGV[4])
"""
)

SHARE_SCRIPTS = {
    "claim": lua_script(CLAIM_SLOT),
    "renew": lua_script(RENEW_SLOT),
    "release": lua_script(RELEASE_SLOT),
    "loaded": lua_script(LOADED_SLOT),
    "tell": lua_script(TELL_ALL),
}
