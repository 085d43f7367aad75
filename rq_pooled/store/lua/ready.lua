-- Queue dependents that a stock worker of RQ 3 noted as ready, before it died between its two steps. Then free leaked
-- slots of rate limits, and fill free ones.
--
-- KEYS[1..n]  queues (rq:queue:<name>) of the caller
-- ARGV[1]     seconds after which a job was left   ARGV[2]  now, as RQ formats a date
-- returns     { { job id, queue key, 1 if it was queued, 0 if only its entry was removed } ... }
redis.call('DEL', NONE)
-- rights first

-- RQ limits
-- include fits
-- include pass_limit
local time = redis.call('TIME')
local clock = tonumber(time[1]) + tonumber(time[2]) / 1000000
local now, PAGE = ARGV[2], 100

local found = {}
for _, key in ipairs(KEYS) do
  local ready = READY .. string.sub(key, #QUEUE + 1)
  local left = fits(key, 'list') and redis.pcall('ZRANGEBYSCORE', ready, '-inf', clock - ARGV[1], 'LIMIT', 0, PAGE) or {}
  for _, id in ipairs(left) do
    local job = JOB .. id
    local fields = redis.pcall('HMGET', job, 'status', 'rate_limit_key', 'rate_limit_concurrency', 'enqueue_at_front')
    local queued = fields[1] == 'ready_to_enqueue'
    redis.call('ZREM', ready, id)
    if queued then
      local at_front = fields[4] == '1'
      if not pass_limit(id, fields[2], fields[3], at_front, clock, now) then
        redis.call('HSET', job, 'status', 'queued', 'enqueued_at', now)
        redis.call(at_front and 'LPUSH' or 'RPUSH', key, id)
      end
      redis.pcall('SADD', QUEUES, key)
    end
    found[#found + 1] = { id, key, queued and 1 or 0 }
  end
end
-- Free leaked slots, whose job expired, or was deleted and its worker killed. Admit jobs that no release has admitted,
-- since a worker on RQ 2 only frees slots, and an enqueue may die between its two steps. RQ's own code decides.
local AT_ONCE, OLDEST = 50, 20
for _, name in ipairs(RQ3 and redis.pcall('SRANDMEMBER', RATE_LIMITS, AT_ONCE) or {}) do
  local limit = RATE_LIMIT .. name
  local allowed, waiting = limit .. ':allowed', limit .. ':rate_limited'
  local concurrency = redis.pcall('HGET', limit, 'concurrency')
  if type(concurrency) == 'string' and tonumber(concurrency) and is_limit(limit) then
    for _, id in ipairs(redis.call('ZRANGE', allowed, 0, OLDEST - 1)) do
      local status = redis.pcall('HGET', JOB .. id, 'status')
      if status ~= 'queued' and status ~= 'started' then
        rq_named.release_stale({ allowed, waiting, JOB .. id, EXECUTIONS .. id },
          { concurrency, clock, now, QUEUE, JOB, id })
      end
    end
    rq_named.acquire({ allowed, waiting }, { concurrency, clock, now, QUEUE, JOB })
  end
end
return found
