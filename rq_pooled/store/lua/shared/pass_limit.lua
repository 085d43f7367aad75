-- Tell whether a limit's own keys have the types that RQ gives them.
local function is_limit(limit)
  return fits(RATE_LIMITS, 'set') and fits(limit, 'hash') and fits(limit .. ':allowed', 'zset')
    and fits(limit .. ':rate_limited', 'zset')
end

-- Let a job through its limit, or let it wait there, as RQ 3's _enqueue_rate_limited_job; tell whether its limit works.
-- If a key of the limit has another type, the job goes on without a limit, so that it is not lost.
local function pass_limit(id, key, concurrency, at_front, clock, now)
  local limit = RATE_LIMIT .. (key or '')
  if not (RQ3 and key and key ~= '' and (tonumber(concurrency or '') or 0) > 0 and is_limit(limit)) then
    return false
  end
  redis.call('HSET', JOB .. id, 'status', 'rate_limited')
  if at_front then
    redis.call('HSET', JOB .. id, 'enqueue_at_front', '1')
  end
  redis.call('SADD', RATE_LIMITS, key)
  redis.call('HSET', limit, 'concurrency', concurrency)
  redis.call('ZADD', limit .. ':rate_limited', clock, id)
  rq_named.acquire({ limit .. ':allowed', limit .. ':rate_limited' }, { concurrency, clock, now, QUEUE, JOB })
  return true
end
