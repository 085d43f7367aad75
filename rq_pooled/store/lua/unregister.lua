-- Register the death of all slots, as RQ's register_death does for one, and give back the scheduler's locks.
--
-- KEYS        none: they follow from the names
-- ARGV[1]     now, as RQ formats a date        ARGV[2]  this scheduler's name
-- ARGV[3]     number of queues                 ARGV[4..]  queue name ...
-- then        worker name ...
-- returns     number of workers
local now, scheduler, queues = ARGV[1], ARGV[2], tonumber(ARGV[3])
for at = 4 + queues, #ARGV do
  local worker = WORKER .. ARGV[at]
  redis.pcall('SREM', WORKERS, worker)
  for i = 4, 3 + queues do
    redis.pcall('SREM', WORKERS .. ':' .. ARGV[i], worker)
  end
  redis.pcall('HSET', worker, 'death', now)
  redis.pcall('DEL', worker .. ':executions')
  -- A dead worker stays visible for a minute, as in RQ.
  redis.pcall('EXPIRE', worker, 60)
end
for i = 4, 3 + queues do
  local lock = DUE_LOCK .. ARGV[i]
  if redis.pcall('GET', lock) == scheduler then
    redis.pcall('DEL', lock)
  end
end
redis.pcall('DEL', SCHEDULER .. scheduler)
return #ARGV - 3 - queues
