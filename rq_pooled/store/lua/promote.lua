-- Move due scheduled jobs to their queues, under RQ's own scheduler lock. Each job changes as under RQScheduler's
-- enqueue_scheduled_jobs, in one step, by the server's clock.
--
-- KEYS[1..n]  scheduled registries (rq:scheduled:<queue>), then keys that the caller asks for
-- ARGV[1]     this scheduler's name            ARGV[2]  life of its locks, seconds
-- ARGV[3]     now, as RQ formats a date        ARGV[4]  timeout of a job that has none, seconds
-- ARGV[5]     jobs per queue at most           ARGV[6]  n
-- ARGV[7..]   field, value ... of the hash rq:scheduler:<name>
--
-- A due time of ours has a fraction, and counts exactly. A whole number was written by a stock client, which cuts the
-- fraction off, so the job is moved a second later, never early.
--
-- returns     { queues whose lock is ours, jobs moved, 1 if a queue has more that are due, milliseconds after which
--             to look again: when the next is due or at the next full second for what is ours, when its lock ends for
--             what is not, how many of the keys asked for exist; one that is named twice counts twice }
--
-- A worker that sleeps calls this every second, so what nothing is due for costs three commands a queue.

-- rights first
-- RQ limits
local name, lock_ttl, now, default_timeout, limit = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local time = redis.call('TIME')
local second, clock = tonumber(time[1]), time[1] .. string.format('.%06d', time[2])
local locks, moved, more, wait, registries, taken = 0, 0, 0, 15000, tonumber(ARGV[6]), false
-- The lock keeps stock schedulers out, which read ids before they move them; among our workers it only saves work. So a
-- lock that a worker of ours has not renewed, as it does every second, is taken over at once.
local SILENT = 3000
local function is_ours_and_silent(owner, lock)
  return redis.pcall('HEXISTS', SCHEDULER .. owner, 'rq_pooled') == 1
    and redis.call('PTTL', lock) < lock_ttl * 1000 - SILENT
end

-- include numbers
-- include fits
-- include pass_limit
-- include expire_job

for at = 1, registries do
  local scheduled = KEYS[at]
  local queue = string.sub(scheduled, #SCHEDULED + 1)
  local lock = DUE_LOCK .. queue
  local owner = redis.pcall('GET', lock)
  local ours = not owner or owner == name or (type(owner) == 'string' and is_ours_and_silent(owner, lock))
  local first = ours and redis.pcall('ZRANGEBYSCORE', scheduled, 0, '(' .. second + 1, 'LIMIT', 0, 1) or {}
  if type(owner) == 'table' or first.err or (first[1] and not fits(QUEUE .. queue, 'list')) then
    wait = math.min(wait, SILENT) -- left alone, so that the others go on
  elseif ours then
    locks = locks + 1
    taken = taken or owner ~= name
    redis.call('SET', lock, name, 'EX', lock_ttl)
    local due = {}
    if first[1] then
      -- These are all jobs due until now, except those of exactly this second, whose times are whole.
      due = redis.call('ZRANGEBYSCORE', scheduled, 0, '(' .. second, 'LIMIT', 0, limit)
      if #due < limit then
        for _, id in ipairs(redis.call('ZRANGEBYSCORE', scheduled, '(' .. second, clock, 'LIMIT', 0, limit - #due)) do
          due[#due + 1] = id
        end
      end
      local soon = redis.call('ZRANGEBYSCORE', scheduled, '(' .. clock, '(' .. second + 1, 'WITHSCORES', 'LIMIT', 0, 1)
      if soon[2] then
        wait = math.min(wait, math.max(1, math.ceil((soon[2] - clock) * 1000)))
      end
    end
    if #due == limit then
      more = 1
    end
    for _, id in ipairs(due) do
      local job = JOB .. id
      local fields = redis.pcall('HMGET', job, 'data', 'timeout', 'ttl', 'enqueue_at_front',
        'enqueue_at_front_on_retry', 'ended_at', 'rate_limit_key', 'rate_limit_concurrency') -- an error: no job
      if fields[1] then
        redis.call('HSET', job, 'origin', queue)
        if not fields[2] then
          redis.call('HSET', job, 'timeout', default_timeout)
        end
        local ttl = seconds_of(fields[3])
        if ttl then
          expire_job(id, ttl)
        end
        local ran_before = fields[6] and fields[6] ~= ''
        local at_front = fields[4] == '1' or (fields[5] == '1' and ran_before)
        if not pass_limit(id, fields[7], fields[8], at_front, time[1] + time[2] / 1000000, now) then
          redis.call('HSET', job, 'status', 'queued', 'enqueued_at', now)
          redis.call(at_front and 'LPUSH' or 'RPUSH', QUEUE .. queue, id)
        end
        moved = moved + 1
      end
      redis.call('ZREM', scheduled, id)
    end
  else
    -- A living scheduler renews its lock long before.
    local left = redis.call('PTTL', lock)
    if redis.pcall('HEXISTS', SCHEDULER .. owner, 'rq_pooled') == 1 then
      -- Until it would be silent, were it dead.
      wait = math.min(wait, math.max(1, left - lock_ttl * 1000 + SILENT + 5))
    elseif left >= 0 then
      wait = math.min(wait, left + 5)
    end
  end
end
if locks > 0 then
  -- The next look is at a full second, for jobs that were scheduled meanwhile, and those of stock clients.
  wait = math.min(wait, 1002 - math.floor(tonumber(time[2]) / 1000))
  -- The hash outlives four such moments.
  if taken or second % 15 == 0 then
    redis.pcall('HSET', SCHEDULER .. name, unpack(ARGV, 7))
    redis.call('EXPIRE', SCHEDULER .. name, lock_ttl)
  end
end
local found = 0
for at = registries + 1, #KEYS, 5000 do
  found = found + redis.call('EXISTS', unpack(KEYS, at, math.min(#KEYS, at + 4999)))
end
return { locks, moved, more, wait, found }
