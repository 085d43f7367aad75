-- Register all slots of a worker as RQ workers, or none of them.
--
-- KEYS        none: they follow from the names
-- ARGV[1]     life of the workers' hashes, s   ARGV[2]  1: they are ours already, write them again
-- ARGV[3]     host of a process known dead     ARGV[4]  its pid; its names are free
-- ARGV[5]     number of queues                 ARGV[6..]  queue name ...
-- then        per slot: worker name, number of words, field, value ... of its hash
-- returns     {} or { worker name that is taken, its host, its pid }

-- rights first
local ttl, again, dead_host, dead_pid = ARGV[1], ARGV[2] == '1', ARGV[3], ARGV[4]
local queues, first = {}, 6 + tonumber(ARGV[5])
for i = 6, first - 1 do
  queues[#queues + 1] = ARGV[i]
end

-- include fits

local fit = fits(WORKERS, 'set')
for _, queue in ipairs(queues) do
  fit = fit and fits(WORKERS .. ':' .. queue, 'set')
end
if not fit then
  return redis.error_reply('WRONGTYPE ' .. WORKERS .. ', or the same of a queue, is no set')
end

local at = first
while at <= #ARGV and not again do
  local worker = WORKER .. ARGV[at]
  local known = redis.call('HMGET', worker, 'birth', 'death', 'hostname', 'pid')
  if known[1] and not known[2] and not (known[3] == dead_host and known[4] == dead_pid) then
    return { ARGV[at], known[3] or '', known[4] or '' }
  end
  at = at + 2 + tonumber(ARGV[at + 1])
end

at = first
while at <= #ARGV do
  local worker, words = WORKER .. ARGV[at], tonumber(ARGV[at + 1])
  if not again then
    redis.call('DEL', worker, worker .. ':executions')
  end
  redis.call('HDEL', worker, 'death')
  redis.call('HSET', worker, unpack(ARGV, at + 2, at + 1 + words))
  redis.call('EXPIRE', worker, ttl)
  redis.call('SADD', WORKERS, worker)
  for _, queue in ipairs(queues) do
    redis.call('SADD', WORKERS .. ':' .. queue, worker)
  end
  at = at + 2 + words
end
return {}
