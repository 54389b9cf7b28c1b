"""Lua scripts that Redis runs, each atomically. They use Redis' clock.

Keys, each after the prefix of the URL:

| Key | Value |
|---|---|
| `alive:INSTANCE` | the description of an instance; expires with its lease |
| `instances` | a sorted set: the names of instances by the end of their leases in µs |
| `own:DEVICE` | the record of an owner: `AT_US INSTANCE` |
| `swaps:DEVICE` | a list: the times in µs of the last swaps |
| `budget:KEY` | a token bucket: `LEFT AT_US` |

Channels belong to no database, so their names contain its number: `DB:box:INSTANCE` and `DB:dev:DEVICE`, each
after the prefix. A change of an owner is announced as `+RECORD\\nDEVICE`, its end as `-RECORD\\nDEVICE`.

A script takes the prefix of keys and the prefix of channels first. Scripts use keys that are computed from
values, which Redis Cluster does not support.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class Script:
    """A Lua script, and its name in Redis."""

    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


# Lua compares strings in the order of the system's locale, and writes large numbers with an exponent.
_COMMON: Final = """
local prefix, channels = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function text(number)
  return string.format('%.0f', number)
end
local function parse(record)
  if record then
    local at, instance = string.match(record, '^(%-?%d+) (.+)$')
    return tonumber(at), instance
  end
end
local leases = {}
local function is_alive(instance)
  if leases[instance] == nil then
    leases[instance] = redis.call('EXISTS', prefix .. 'alive:' .. instance) == 1
  end
  return leases[instance]
end
local function is_less(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then
      return x < y
    end
  end
  return #a < #b
end
local function device_of(key)
  return string.sub(key, #prefix + #'own:' + 1)
end
"""

RENEW: Final = Script(
    _COMMON
    + """
-- KEYS: devices whose ownership must not expire. ARGV: instance, description, lease in ms, expiry in s
local instance, lease_ms = ARGV[3], tonumber(ARGV[5])
local before = redis.call('EXISTS', prefix .. 'alive:' .. instance)
redis.call('SET', prefix .. 'alive:' .. instance, ARGV[4], 'PX', lease_ms)
redis.call('ZADD', prefix .. 'instances', text(now + lease_ms * 1000), instance)
redis.call('ZREMRANGEBYSCORE', prefix .. 'instances', '-inf', text(now))
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ARGV[6])
end
return before
"""
)

INSTANCES: Final = Script(
    _COMMON
    + """
-- ARGV: the most instances to list. Returns names, each followed by the description
local found = {}
local names = redis.call('ZRANGEBYSCORE', prefix .. 'instances', text(now), '+inf', 'LIMIT', 0, ARGV[3])
for _, name in ipairs(names) do
  local description = redis.call('GET', prefix .. 'alive:' .. name)
  if description then
    found[#found + 1] = name
    found[#found + 1] = description
  end
end
return found
"""
)

CLAIM: Final = Script(
    _COMMON
    + """
-- KEYS: devices. ARGV: instance, expiry in s, then for each device the time of the connection.
-- Returns for each device '' if it is won, or else the record of its owner
local instance, results = ARGV[3], {}
for i, key in ipairs(KEYS) do
  local at = tonumber(ARGV[4 + i])
  local before = redis.call('GET', key)
  local owner_at, owner = parse(before)
  local alive = owner and is_alive(owner)
  if alive and (owner_at > at or owner_at == at and is_less(instance, owner)) then
    results[i] = before
  else
    local record = text(at) .. ' ' .. instance
    redis.call('SET', key, record, 'EX', ARGV[4])
    local announcement = '+' .. record .. '\\n' .. device_of(key)
    redis.call('PUBLISH', channels .. 'dev:' .. device_of(key), announcement)
    if owner and owner ~= instance then
      redis.call('PUBLISH', channels .. 'box:' .. owner, announcement)
    end
    results[i] = ''
  end
end
return results
"""
)

RELEASE: Final = Script(
    _COMMON
    + """
-- KEYS: a device. ARGV: the record of its owner
if redis.call('GET', KEYS[1]) == ARGV[3] then
  redis.call('DEL', KEYS[1])
  local device = device_of(KEYS[1])
  redis.call('PUBLISH', channels .. 'dev:' .. device, '-' .. ARGV[3] .. '\\n' .. device)
end
return 1
"""
)

LOCATE: Final = Script(
    _COMMON
    + """
-- KEYS: devices. ARGV: how many swaps within how many µs make a device contested.
-- Returns for each device '' without an owner, or else '1' or '0' for contested or not, and the record
local swaps, within_us, results = tonumber(ARGV[3]), tonumber(ARGV[4]), {}
for i, key in ipairs(KEYS) do
  local record = redis.call('GET', key)
  local _, owner = parse(record)
  if owner and is_alive(owner) then
    local times = redis.call('LRANGE', prefix .. 'swaps:' .. device_of(key), -swaps, -1)
    local contested = #times == swaps and now - tonumber(times[1]) < within_us
    results[i] = (contested and '1' or '0') .. record
  else
    results[i] = ''
  end
end
return results
"""
)

NOTE_SWAP: Final = Script(
    _COMMON
    + """
-- KEYS: the list. ARGV: how many swaps to keep, expiry in s
redis.call('RPUSH', KEYS[1], text(now))
redis.call('LTRIM', KEYS[1], -ARGV[3], -1)
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
"""
)

_BUCKET: Final = (
    _COMMON
    + """
local function parse_bucket(value)
  if value then
    local left, at = string.match(value, '^(%S+) (%S+)$')
    return tonumber(left), tonumber(at)
  end
end
local function write(left, at)
  return string.format('%.17g ', left) .. text(at)
end
"""
)

TAKE: Final = Script(
    _BUCKET
    + """
-- KEYS: the bucket. ARGV: amount, refill per second, capacity, expiry in s.
-- Returns 1 if the amount was taken, or else 0
local amount, per_s, burst = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local left, at = parse_bucket(redis.call('GET', KEYS[1]))
if not at then
  left, at = burst, now
end
-- After a failover, the clock of the new server may be behind.
left = math.min(burst, left + math.max(0, now - at) / 1000000 * per_s)
local taken = left >= amount
if taken then
  left = left - amount
end
redis.call('SET', KEYS[1], write(left, now), 'EX', ARGV[6])
return taken and 1 or 0
"""
)

REFUND: Final = Script(
    _BUCKET
    + """
-- KEYS: the bucket. ARGV: amount, capacity
local left, at = parse_bucket(redis.call('GET', KEYS[1]))
if at then
  redis.call('SET', KEYS[1], write(math.min(tonumber(ARGV[4]), left + tonumber(ARGV[3])), at), 'KEEPTTL')
end
return 1
"""
)

ALL: Final = (RENEW, INSTANCES, CLAIM, RELEASE, LOCATE, NOTE_SWAP, TAKE, REFUND)
