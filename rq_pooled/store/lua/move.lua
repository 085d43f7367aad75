-- Move one due job of rq-scheduler to its queue, and put its next time in the place of this one, in one step.
--
-- KEYS[1]     rq:scheduler:scheduled_jobs      KEYS[2]  rq:scheduler_lock
-- KEYS[3]     queue to push to (rq:queue:<name>)
-- ARGV[1]     the lock's value while it is ours, '' to move without it
-- ARGV[2]     life of the lock from now on, s  ARGV[3]  job id
-- ARGV[4]     the time at which it was due when it was read, '' for any
-- ARGV[5]     the time at which it is due next, '' for never
-- ARGV[6]     L or R (front or back)           ARGV[7]  ttl of the job, -1 for none
-- ARGV[8]     number of jobs that it depends on, ARGV[9..] their ids
-- then        field, value ... of the job's hash
-- returns     moved | deferred (a job that it depends on is unfinished) | gone (deleted) | changed (moved by another one,
--             cancelled, or given another time) | locked (another one has the lock) | unfit (its next time is out of
--             range, or a key to write to is of another type): nothing was done

-- rights first
-- RQ limits
-- include holds
-- include has_job
local scheduled, lock, queue = KEYS[1], KEYS[2], KEYS[3]
local token, id, due, next_time = ARGV[1], ARGV[3], ARGV[4], ARGV[5]
local dependencies = tonumber(ARGV[8])
local job = JOB .. id
if not holds(lock, token, ARGV[2]) then
  return 'locked'
end
if due ~= '' and tonumber(redis.call('ZSCORE', scheduled, id) or '') ~= tonumber(due) then
  return 'changed'
end
if not has_job(job) then
  redis.call('ZREM', scheduled, id)
  return 'gone'
end

local waits = false
for i = 9, 8 + dependencies do
  local status = redis.pcall('HGET', JOB .. ARGV[i], 'status')
  waits = waits or (type(status) == 'string' and status ~= 'finished')
end

-- include numbers
-- include fits
-- include pass_limit
-- include expire_job

local deferred = DEFERRED .. string.sub(queue, #QUEUE + 1)
local depends_on = JOB .. ':' .. id .. ':dependencies'
local fit = fits(scheduled, 'zset') and fits(QUEUES, 'set')
fit = fit and (waits and fits(deferred, 'zset') or not waits and fits(queue, 'list'))
fit = fit and (next_time == '' or math.abs(tonumber(next_time) or 1e300) < 1e15)
for i = 9, 8 + (waits and dependencies or 0) do
  fit = fit and fits(JOB .. ARGV[i] .. ':dependents', 'set') and fits(depends_on, 'set')
end
if not fit then
  return 'unfit'
end

local ttl = seconds_of(ARGV[7])
redis.call('SADD', QUEUES, queue)
redis.call('HSET', job, unpack(ARGV, 9 + dependencies))
if waits then
  redis.call('HSET', job, 'status', 'deferred')
  redis.call('ZADD', deferred, redis.call('TIME')[1], id)
  for i = 9, 8 + dependencies do
    redis.call('SADD', JOB .. ARGV[i] .. ':dependents', id)
    redis.call('SADD', depends_on, ARGV[i])
  end
end
if ttl then
  expire_job(id, ttl)
end
if next_time == '' then
  redis.call('ZREM', scheduled, id)
else
  redis.call('ZADD', scheduled, next_time, id)
end
-- This comes last, because the commands before it can be repeated.
if not waits then
  local limit = redis.call('HMGET', job, 'rate_limit_key', 'rate_limit_concurrency', 'enqueued_at')
  local time = redis.call('TIME')
  if not pass_limit(id, limit[1], limit[2], ARGV[6] == 'L', time[1] + time[2] / 1000000, limit[3] or '') then
    redis.call(ARGV[6] == 'L' and 'LPUSH' or 'RPUSH', queue, id)
  end
end
return waits and 'deferred' or 'moved'
