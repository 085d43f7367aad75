-- RQ 3's limits on jobs that run at once. RQ's own scripts decide; they are called only where they cannot fail halfway,
-- since a job that they have taken out of the waiting ones would be nowhere.
local function is_a(key, wanted)
  local found = redis.call('TYPE', key).ok
  return found == wanted or found == 'none'
end

-- Tell whether a limit's own keys are what RQ makes them.
local function is_limit(limit)
  return is_a('rq:rl-keys', 'set') and is_a(limit, 'hash') and is_a(limit .. ':allowed', 'zset')
    and is_a(limit .. ':rate_limited', 'zset')
end

-- Tell whether the jobs that would be let in can be: their queues are lists. What is no job is taken out.
local function can_fill(allowed, waiting, concurrency, freed)
  local free, start = tonumber(concurrency) + freed - redis.call('ZCARD', allowed), 0
  while free > 0 do
    local ids = redis.call('ZRANGE', waiting, start, start + 99)
    if #ids == 0 then
      return true
    end
    start = start + #ids
    for _, id in ipairs(ids) do
      local fields = redis.pcall('HMGET', 'rq:job:' .. id, 'origin', 'status')
      if fields.err then
        redis.call('ZREM', waiting, id)
        start = start - 1
      elseif fields[1] and fields[2] == 'rate_limited' then
        if not is_a('rq:queue:' .. fields[1], 'list') then
          return false
        end
        free = free - 1
      end
    end
  end
  return true
end

-- Let in as many of the waiting jobs as there are free slots.
local function fill_slots(limit, concurrency, clock, now)
  local allowed, waiting = limit .. ':allowed', limit .. ':rate_limited'
  if can_fill(allowed, waiting, concurrency, 0) then
    rq_named.acquire({ allowed, waiting }, { concurrency, clock, now, 'rq:queue:', 'rq:job:' })
  end
end

-- Free the slot of a job that needs it no more, of which RQ's script makes sure.
local function release_stale(limit, id, concurrency, clock, now)
  local allowed, waiting = limit .. ':allowed', limit .. ':rate_limited'
  if can_fill(allowed, waiting, concurrency, 1) then
    rq_named.release_stale({ allowed, waiting, 'rq:job:' .. id, 'rq:executions:' .. id },
      { concurrency, clock, now, 'rq:queue:', 'rq:job:', id })
  end
end

-- Let a job through its limit, or have it wait there, as RQ 3's _enqueue_rate_limited_job; return whether it has one that
-- works. Where a key of the limit has become something else the job goes on without: nothing is lost.
local function pass_limit(id, key, concurrency, at_front, clock, now)
  local limit = 'rq:rl:' .. (key or '')
  if not (RQ3 and key and key ~= '' and (tonumber(concurrency or '') or 0) > 0 and is_limit(limit)) then
    return false
  end
  redis.call('HSET', 'rq:job:' .. id, 'status', 'rate_limited')
  if at_front then
    redis.call('HSET', 'rq:job:' .. id, 'enqueue_at_front', '1')
  end
  redis.call('SADD', 'rq:rl-keys', key)
  redis.call('HSET', limit, 'concurrency', concurrency)
  redis.call('ZADD', limit .. ':rate_limited', clock, id)
  fill_slots(limit, concurrency, clock, now)
  return true
end
