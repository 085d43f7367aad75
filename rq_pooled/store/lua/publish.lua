-- Publish the statistics of one process, list it among the publishing processes, and drop silent ones. What a worker's
-- counters grew by is added to the sums of all workers, once, even if the call is sent again.
--
-- KEYS[1]     hash of the process
-- ARGV[1]     life of what is published, s
-- ARGV[2..]   field, value ...
-- returns     server time, microseconds since the epoch
--
-- As in commit.lua, a write that the server never denies comes first: a full server must not hide its processes.

-- rights first
local time = redis.call('TIME')
local clock = tonumber(time[1]) + tonumber(time[2]) / 1000000
-- include fits
if not fits(STATS, 'zset') then
  -- The key is ours, and all processes list themselves again.
  redis.call('DEL', STATS)
end
redis.call('ZREMRANGEBYSCORE', STATS, '-inf', clock)

local ttl = tonumber(ARGV[1])
local before = redis.pcall('HMGET', KEYS[1], 'uptime', 'finished', 'failed')
redis.call('HSET', KEYS[1], 'published_at', string.format('%.6f', clock), unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], math.ceil(ttl * 1000))
redis.call('ZADD', STATS, clock + ttl, KEYS[1])
local longest = redis.call('PTTL', STATS)
if longest < ttl * 1000 then
  redis.call('PEXPIRE', STATS, math.ceil(ttl * 1000))
end

local now = {}
for at = 2, #ARGV, 2 do
  now[ARGV[at]] = tonumber(ARGV[at + 1])
end
-- Another process had the name, or it is new. What a process did before the server forgot it may be counted already.
local uptime, known = now.uptime or 0, not before.err and before[1]
local same = known and (tonumber(before[1]) or 0) <= uptime
local finished = (now.finished or 0) - (same and tonumber(before[2]) or 0)
local failed = (now.failed or 0) - (same and tonumber(before[3]) or 0)
if (same or uptime <= ttl) and finished + failed > 0 then
  if not fits(ENDED, 'list') then
    redis.call('DEL', ENDED)
  end
  local slot = string.format('%d', math.floor(clock / 15))
  local newest = redis.call('LINDEX', ENDED, 0) or ''
  local of, sum, bad = string.match(newest, '^(%d+) (%d+) (%d+)$')
  if of == slot then
    finished, failed = finished + tonumber(sum), failed + tonumber(bad)
    redis.call('LPOP', ENDED)
  end
  redis.call('LPUSH', ENDED, string.format('%s %d %d', slot, finished, failed))
  redis.call('LTRIM', ENDED, 0, 239)
  redis.call('EXPIRE', ENDED, 3600)
end
return tonumber(time[1]) * 1000000 + tonumber(time[2])
