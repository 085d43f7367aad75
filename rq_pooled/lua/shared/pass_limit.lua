-- Let a job through its rate limit, or have it wait there, as RQ 3's _enqueue_rate_limited_job; return whether it has one.
local function pass_limit(id, key, concurrency, at_front, clock, now)
  if not (RQ3 and key and key ~= '' and tonumber(concurrency or '0') > 0) then
    return false
  end
  local limit = 'rq:rl:' .. key
  redis.call('HSET', 'rq:job:' .. id, 'status', 'rate_limited')
  if at_front then
    redis.call('HSET', 'rq:job:' .. id, 'enqueue_at_front', '1')
  end
  redis.call('SADD', 'rq:rl-keys', key)
  redis.call('HSET', limit, 'concurrency', concurrency)
  redis.call('ZADD', limit .. ':rate_limited', clock, id)
  rq_named.acquire({ limit .. ':allowed', limit .. ':rate_limited' }, { concurrency, clock, now, 'rq:queue:', 'rq:job:' })
  return true
end
