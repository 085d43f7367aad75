-- Reserve the connections that a starting worker is about to open, or give the reservation back.
--
-- KEYS[1]     sorted set of the workers that are starting: worker's token -> server time at which it came
-- ARGV[1]     the worker's token               ARGV[2]  1: reserve or keep, 0: give back
-- ARGV[3]     seconds after which one that is silent is forgotten
-- returns     { how many came before it, how many after it }

-- rights first
local time = redis.call('TIME')
local clock = tonumber(time[1]) + tonumber(time[2]) / 1000000
local token, life = ARGV[1], tonumber(ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', clock - life)
-- No worker comes later than now.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. clock, '+inf')
if ARGV[2] == '0' then
  redis.call('ZREM', KEYS[1], token)
  return { 0, 0 }
end
if not redis.call('ZSCORE', KEYS[1], token) then
  redis.call('ZADD', KEYS[1], clock, token)
  redis.call('PEXPIRE', KEYS[1], math.ceil(life * 1000))
end
local rank = redis.call('ZRANK', KEYS[1], token)
return { rank, redis.call('ZCARD', KEYS[1]) - rank - 1 }
