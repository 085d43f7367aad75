-- Publish the statistics of one process, list it among the publishing processes, and drop silent ones.
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
redis.call('HSET', KEYS[1], 'published_at', string.format('%.6f', clock), unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], math.ceil(ttl * 1000))
redis.call('ZADD', STATS, clock + ttl, KEYS[1])
local longest = redis.call('PTTL', STATS)
if longest < ttl * 1000 then
  redis.call('PEXPIRE', STATS, math.ceil(ttl * 1000))
end
return tonumber(time[1]) * 1000000 + tonumber(time[2])
