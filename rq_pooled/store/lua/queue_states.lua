-- Count what stands in queues and their registries, and tell since when the jobs at their heads are queued. Changes
-- nothing.
--
-- KEYS        none
-- ARGV[1]     ids at the head of each queue to look at
-- ARGV[2..]   names of queues
-- returns     for each queue { jobs, workers, started, scheduled, deferred, failed, finished, canceled, dead letters,
--             ready (-1 for a key of another type), when the first scheduled job is due or '', enqueued_at of each job at
--             the head that has one ... }
local refused
local function counted(reply)
  if type(reply) == 'number' then
    return reply
  end
  refused = refused or (not string.find(reply.err, 'WRONGTYPE') and reply)
  return -1
end
local states = {}
for at = 2, #ARGV do
  local name = ARGV[at]
  local list = QUEUE .. name
  local state = { counted(redis.pcall('LLEN', list)), counted(redis.pcall('SCARD', WORKERS .. ':' .. name)) }
  for _, registry in ipairs({ WIP, SCHEDULED, DEFERRED, FAILED, FINISHED, CANCELED, DEAD, READY }) do
    state[#state + 1] = counted(redis.pcall('ZCARD', registry .. name))
  end
  state[#state + 1] = state[4] > 0 and redis.call('ZRANGE', SCHEDULED .. name, 0, 0, 'WITHSCORES')[2] or ''
  local head = state[1] > 0 and redis.pcall('LRANGE', list, 0, tonumber(ARGV[1]) - 1) or {}
  for _, id in ipairs(head) do
    local when = redis.pcall('HGET', JOB .. id, 'enqueued_at')
    if type(when) == 'string' then
      state[#state + 1] = when
    end
  end
  states[#states + 1] = state
end
return refused or states
