-- Reserve connections of an application's budget for one pool or worker, renew what it has, or give some back.
--
-- KEYS[1]     sorted set of the leases: token -> server time at which it ends
-- KEYS[2]     hash of what they hold: token -> connections
-- KEYS[3]     hash of the order: token -> number of its last command that was executed
-- KEYS[4]     sorted set of who waits for places: token -> server time at which the wish is forgotten
-- ARGV[1]     token                            ARGV[2]  number of this command: the token's later ones have higher ones
-- ARGV[3]     connections wanted in all        ARGV[4]  fewest that are of use
-- ARGV[5]     the budget                       ARGV[6]  term of the lease, s
-- ARGV[7]     seconds for which a wish stands, 0 for a command that only gives back
-- ARGV[8..]   tokens of processes that have no connection any more: removed if their lease has ended
-- returns     { connections granted or 0, connections that others hold, 0: no other waits, 1: another waits, 2: one that
--             holds nothing does, number of this command } and, where fewer were granted than wanted,
--             { token whose lease has ended ... }, { token, connections ... } of all that hold some
--
-- A lease that has ended still counts, because its process may only be paused, with open sockets. A script may not run
-- CLIENT LIST, so a process that needs the place runs it, and names the tokens of ended processes.
--
-- As in heartbeat.lua, a write that the server never denies comes first, so places are found when memory is full.
redis.call('DEL', NONE)
-- rights first
-- include fits
-- include numbers

-- A key of another type was not written here, and all processes would wait for it.
for i, kind in ipairs({ 'zset', 'hash', 'hash', 'zset' }) do
  if not fits(KEYS[i], kind) then
    redis.call('DEL', KEYS[i])
  end
end
local time = redis.call('TIME')
local clock = tonumber(time[1]) + tonumber(time[2]) / 1000000
local token, number, wanted, least = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local budget, term, wish = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local function remove(one)
  redis.call('ZREM', KEYS[1], one)
  redis.call('HDEL', KEYS[2], one)
  redis.call('HDEL', KEYS[3], one)
  redis.call('ZREM', KEYS[4], one)
end

for i = 8, #ARGV do
  local ends = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if ends and tonumber(ends) < clock then
    remove(ARGV[i])
  end
end

local others, mine, holds = 0, 0, {}
local held = redis.call('HGETALL', KEYS[2])
for i = 1, #held, 2 do
  holds[held[i]] = true
  if held[i] == token then
    mine = count_of(held[i + 1])
  else
    others = others + count_of(held[i + 1])
  end
end

redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', clock)
local hunger = 0
for _, one in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  if one ~= token then
    hunger = math.max(hunger, holds[one] and 1 or 2)
  end
end

local last = tonumber(redis.call('HGET', KEYS[3], token) or 0) or 0
if number < last or (wish == 0 and wanted > mine) then
  -- A later command of this token came first, or others have taken the connections that this one gives back.
  return { mine, others, hunger, number }
end

local granted = math.min(wanted, math.max(mine, budget - others))
if hunger == 2 and mine >= least then
  -- The next place is for a process that has none.
  granted = math.min(wanted, mine)
end
if granted < least then
  remove(token)
  granted = 0
else
  redis.call('ZADD', KEYS[1], clock + term, token)
  redis.call('HSET', KEYS[2], token, granted)
  redis.call('HSET', KEYS[3], token, number)
end
if granted < wanted then
  redis.call('ZADD', KEYS[4], clock + wish, token)
  -- The key expires, so that EXISTS tells whether a process waits.
  redis.call('PEXPIRE', KEYS[4], math.ceil(wish * 1000))
elseif wanted > mine then
  redis.call('ZREM', KEYS[4], token)
end
-- The keys expire this many milliseconds after the last process has stopped renewing.
local life = math.ceil(term * 1000) + 3600000
for i = 1, 3 do
  redis.call('PEXPIRE', KEYS[i], life)
end
if granted < wanted then
  local ended = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', clock)
  return { granted, others, hunger, number, ended, redis.call('HGETALL', KEYS[2]) }
end
return { granted, others, hunger, number }
