-- Count what stands in queues and their registries, and tell since when the jobs at their heads are queued. Changes
-- nothing.
--
-- KEYS        none
-- ARGV[1]     ids at the head of each queue to look at
-- ARGV[2..]   names of queues
-- returns     for each queue { jobs, workers that are there (of more than 50: all that registered, if any is there),
--             started, scheduled, deferred, failed, finished, canceled, dead letters,
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
-- One that was killed stays in the set until a worker of its queue tidies up: RQ's hash of it expires after its TTL.
local there = {}
local function living(key, most)
  local found = 0
  for _, worker in ipairs(redis.call('SRANDMEMBER', key, most)) do
    if there[worker] == nil then
      there[worker] = redis.call('EXISTS', worker)
    end
    found = found + there[worker]
  end
  return found
end
local function alive(queue)
  local key = WORKERS .. ':' .. queue
  local size = counted(redis.pcall('SCARD', key))
  if size < 1 then
    return size
  end
  if size <= 50 then
    return living(key, 50)
  end
  -- To count them all in each of 1,000 queues takes too long. Where some are there, a few looks find one.
  return (living(key, 5) > 0 or living(key, 1000) > 0) and size or 0
end
local states = {}
for at = 2, #ARGV do
  local name = ARGV[at]
  local list = QUEUE .. name
  local state = { counted(redis.pcall('LLEN', list)), alive(name) }
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
