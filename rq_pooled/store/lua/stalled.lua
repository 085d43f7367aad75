-- Find claims whose lease has expired, because their worker is dead, cut off or stopped. Their jobs go back to the
-- front of their queues. A job that has stalled too often is claimed for the caller, which fails it.
--
-- KEYS[1..n]  queues (rq:queue:<name>) of the caller; other queues known to RQ are looked at, too
-- ARGV[1]     now, as RQ formats a date        ARGV[2]  now, seconds since the epoch as RQ's executions keep it
-- ARGV[3]     lease, seconds                   ARGV[4]  abandon after, seconds
-- ARGV[5]     how often a job may stall        ARGV[6]  milliseconds in which one caller is enough
-- ARGV[7]     the caller's claims hash         ARGV[8]  worker name for jobs to fail
-- ARGV[9]     claims that one call looks at    ARGV[10] server time after which the caller's judgement is void
-- ARGV[11..]  execution ids for jobs to fail
-- returns     { 1 if there may be more, { { job id, queue, worker that had it, stalls } ... that went back },
--             { { queue key, job id, queue, stalls, execution id, { field, value ... },
--             { field that was left out of it ... } } ... to fail } }
--
-- As in commit.lua, a write that the server never denies comes first, so jobs come back when memory is full.
redis.call('DEL', NONE)
-- rights first

local time = redis.call('TIME')
local clock = tonumber(time[1]) + tonumber(time[2]) / 1000000
-- A server that was frozen may read this call from its socket before any worker can renew a lease.
if clock > tonumber(ARGV[10]) then
  return { 0, {}, {} }
end

if not redis.call('SET', STALLED_LOCK, ARGV[7], 'NX', 'PX', ARGV[6]) then
  return { 0, {}, {} }
end

local now, now_seconds = ARGV[1], ARGV[2]
local lease, abandon_after, max_stalls = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local claims, name, left = ARGV[7], ARGV[8], tonumber(ARGV[9])
-- The number of queues, among all, that are checked in case the workers of one are gone for good.
local SAMPLE = 100

local queues, known = {}, {}
local function add(key)
  if not known[key] and string.sub(key, 1, #QUEUE) == QUEUE then
    known[key] = true
    queues[#queues + 1] = string.sub(key, #QUEUE + 1)
  end
end
for _, key in ipairs(KEYS) do
  add(key)
end
for _, key in ipairs(redis.pcall('SRANDMEMBER', QUEUES, SAMPLE)) do
  add(key)
end

-- include numbers
-- include fits
-- include has_job
-- include read_job

local function forget(queue, id, execution)
  local member = id .. ':' .. execution
  redis.call('DEL', EXECUTION .. member, ASIDE .. member)
  redis.pcall('ZREM', EXECUTIONS .. id, execution)
  redis.call('ZREM', LEASES .. queue, member)
  redis.call('ZREM', WIP .. queue, member)
  -- This wakes the workers that wait for a place in the queue.
  redis.call('DEL', FULL .. queue)
end

-- Return the queue to which a job goes back: the one that it was popped from, else its own; nil if neither can take it.
-- Others may write the execution, and have fewer rights: nothing but a queue is taken from it.
local function way_back(member, queue)
  local key = redis.pcall('HGET', EXECUTION .. member, 'queue_key')
  if type(key) == 'string' and string.sub(key, 1, #QUEUE) == QUEUE and fits(key, 'list') then
    return key
  end
  key = QUEUE .. queue
  return fits(key, 'list') and key or nil
end

local back, failed, more, execution_at = {}, {}, 0, 11
for _, queue in ipairs(queues) do
  local leases = LEASES .. queue
  local stalled = redis.pcall('ZRANGEBYSCORE', leases, '-inf', clock, 'LIMIT', 0, left)
  -- A registry of another type does not tell which claims stand.
  local tells = fits(WIP .. queue, 'zset')
  local pushed = {}
  for _, member in ipairs(tells and stalled or {}) do
    local id, execution = string.match(member, '^(.*):([^:]*)$')
    local job = JOB .. (id or '')
    local key = id and way_back(member, queue)
    if not id then
      -- The member is no claim.
      redis.call('ZREM', leases, member)
    elseif not redis.call('ZSCORE', WIP .. queue, member) or not has_job(job) then
      -- The job was cancelled or deleted while it ran.
      forget(queue, id, execution)
    elseif not key then
      left = left - 1
      -- The job stays claimed until its queue is a list again.
      redis.call('ZADD', leases, clock + lease, member)
    else
      local before = count_of(redis.call('HGET', job, 'rq_pooled_stalls'))
      if before + 1 > max_stalls and execution_at > #ARGV then
        more = 1
        break
      end
      left = left - 1
      local holder = redis.call('HGET', job, 'worker_name') or ''
      local worker = WORKER .. holder
      redis.pcall('SREM', worker .. ':executions', member)
      if redis.pcall('HGET', worker, 'current_job') == id then
        redis.call('HDEL', worker, 'current_job')
      end
      forget(queue, id, execution)
      redis.call('HSET', job, 'rq_pooled_stalls', before + 1)
      if before + 1 > max_stalls then
        local raw, left_out = read_job(job)
        if not left_out then
          raw, left_out = lighten(raw)
        end
        local own = ARGV[execution_at]
        execution_at = execution_at + 1
        member = id .. ':' .. own
        redis.call('HSET', job, 'worker_name', name, 'last_heartbeat', now)
        redis.call('HSET', EXECUTION .. member, 'id', own, 'job_id', id, 'created_at', now_seconds,
          'last_heartbeat', now_seconds, 'worker_name', name, 'queue_key', key)
        redis.call('EXPIRE', EXECUTION .. member, abandon_after)
        redis.pcall('ZADD', EXECUTIONS .. id, clock + abandon_after + 60, own)
        redis.call('EXPIRE', EXECUTIONS .. id, abandon_after + 60)
        redis.call('ZADD', leases, clock + lease, member)
        redis.pcall('HSET', claims, member, string.format('%d %d ', #queue, #key) .. queue .. key .. name)
        redis.call('EXPIRE', claims, abandon_after + 60)
        redis.call('ZADD', WIP .. queue, clock + abandon_after, member)
        failed[#failed + 1] = { key, id, queue, before + 1, own, raw, left_out }
      else
        redis.call('HSET', job, 'status', 'queued', 'started_at', '', 'worker_name', '', 'last_heartbeat', '')
        local ttl = seconds_of(redis.call('HGET', job, 'ttl'))
        if ttl then
          redis.call('EXPIRE', job, ttl)
        end
        pushed[#pushed + 1] = { key, id }
        back[#back + 1] = { id, queue, holder, before + 1 }
      end
    end
  end
  -- Jobs go back from the last to the first, so that the first to stall runs first.
  for i = #pushed, 1, -1 do
    redis.call('LPUSH', pushed[i][1], pushed[i][2])
  end
  if left <= 0 then
    more = 1
  end
  if more == 1 then
    -- The lock is given back, because the caller continues at once.
    redis.call('DEL', STALLED_LOCK)
    break
  end
end
return { more, back, failed }
