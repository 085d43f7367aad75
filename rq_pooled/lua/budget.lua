-- Reserve connections of an application's budget for one pool or worker, or renew what it has.
--
-- KEYS[1]     sorted set of the leases: token -> server time at which it ends
-- KEYS[2]     hash of what they hold: token -> connections
-- ARGV[1]     token                            ARGV[2]  connections wanted
-- ARGV[3]     fewest that are of use           ARGV[4]  the budget
-- ARGV[5]     term of the lease, s
-- ARGV[6..]   tokens of processes that have no connection any more: removed if their lease has ended
-- returns     { connections granted or 0, connections that others hold, { token whose lease has ended ... } }
--
-- A lease that has ended still counts: its process may only be paused, and its sockets are open. Whoever needs the
-- place looks at CLIENT LIST, which a script may not, and names those that are really gone.
local time = redis.call('TIME')
local clock = tonumber(time[1]) + tonumber(time[2]) / 1000000
local token, wanted, least, budget = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local term = tonumber(ARGV[5])

for i = 6, #ARGV do
  local ends = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if ends and tonumber(ends) < clock then
    redis.call('ZREM', KEYS[1], ARGV[i])
    redis.call('HDEL', KEYS[2], ARGV[i])
  end
end

local others, mine = 0, 0
local held = redis.call('HGETALL', KEYS[2])
for i = 1, #held, 2 do
  if held[i] == token then
    mine = tonumber(held[i + 1])
  else
    others = others + tonumber(held[i + 1])
  end
end
local granted = math.max(mine, math.min(wanted, budget - others))
if granted < least then
  redis.call('ZREM', KEYS[1], token)
  redis.call('HDEL', KEYS[2], token)
  granted = 0
else
  redis.call('ZADD', KEYS[1], clock + term, token)
  redis.call('HSET', KEYS[2], token, granted)
  local life = math.ceil(term * 1000) + 3600000 -- of the keys, when nobody is left who renews anything
  redis.call('PEXPIRE', KEYS[1], life)
  redis.call('PEXPIRE', KEYS[2], life)
end
return { granted, others, redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', clock) }
