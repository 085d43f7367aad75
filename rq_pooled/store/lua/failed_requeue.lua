-- Put failed jobs back into their queues, or schedule them, with as many retries as they had at first. Each job changes
-- as under RQ's requeue, in one step, and lives until it has run; RQ would leave the expiry of the failure.
--
-- KEYS[1]     the registry                     KEYS[2]  lock of the sweep
-- ARGV[1]     owner of the lock, or '' to ignore it      ARGV[2]  life of the lock, seconds
-- ARGV[3]     now, as RQ formats a date        ARGV[4]  an empty exc_info, as RQ writes it
-- ARGV[5]     timeout of a job that has none   ARGV[6]  1: to the front of the queue
-- ARGV[7]     how often a job may be requeued in all by calls that count; '' does not count and begins anew
-- ARGV[8]     queue of the registry            ARGV[9]  retries to give, '' for as many as it had at first
-- ARGV[10..]  per job: id, its ended_at or 'any', time at which it is due or '' for now
-- returns     { 'ok' | 'lost' (the lock is not ours any more), { a word per job: done | ghost (it has no data: its
--             entry is removed) | gone (not in the registry) | changed (not failed, or failed anew) | spent } }

-- rights first
-- RQ limits
-- include holds
if not holds(KEYS[2], ARGV[1], ARGV[2]) then
  return { 'lost' }
end
local registry, now, times = KEYS[1], ARGV[3], tonumber(ARGV[7])
local time = redis.call('TIME')
local clock = time[1] + time[2] / 1000000

-- include numbers
-- include fits
-- include is_of
-- include pass_limit

local function budget(rules, left, intervals)
  if ARGV[9] ~= '' then
    return ARGV[9]
  end
  local ok, fields = pcall(cjson.decode, rules or '')
  if ok and type(fields) == 'table' and tonumber(fields.max) then
    return count_of(fields.max)
  end
  ok, fields = pcall(cjson.decode, intervals or '')
  return left and ok and type(fields) == 'table' and math.max(#fields, 1)
end

local function requeue(id, ended_at, due)
  local job = JOB .. id
  if not redis.call('ZSCORE', registry, id) then
    return 'gone'
  end
  local fields = redis.pcall('HMGET', job, 'data', 'status', 'ended_at', 'origin', 'timeout', 'ttl', 'rq_pooled:retry',
    'retries_left', 'retry_intervals', 'rq_pooled:requeues', 'rate_limit_key', 'rate_limit_concurrency') -- an error: no job, a ghost
  if not fields[1] then
    redis.call('ZREM', registry, id)
    return 'ghost'
  elseif (fields[2] ~= 'failed' and fields[2] ~= 'stopped') or (ended_at ~= 'any' and (fields[3] or '') ~= ended_at) then
    return 'changed'
  elseif not is_of(registry, fields[4]) then
    return 'changed'
  elseif times and count_of(fields[10]) >= times then
    return 'spent'
  end
  local queue = fields[4] and fields[4] ~= '' and fields[4] or ARGV[8]
  local list, scheduled = QUEUE .. queue, SCHEDULED .. queue
  if not fits(list, 'list') or not fits(scheduled, 'zset') or not fits(QUEUES, 'set') then
    return 'changed'
  elseif due ~= '' and not (math.abs(tonumber(due) or 1e300) < 1e15) then -- ZADD refuses what is no number
    return 'changed'
  end
  redis.call('ZREM', registry, id)
  redis.call('HDEL', job, 'number_of_retries')
  redis.call('HSET', job, 'status', due == '' and 'queued' or 'scheduled', 'origin', queue, 'started_at', '',
    'ended_at', '', 'exc_info', ARGV[4])
  if due == '' then
    redis.call('HSET', job, 'enqueued_at', now)
  end
  if not fields[5] then
    redis.call('HSET', job, 'timeout', ARGV[5])
  end
  local left = budget(fields[7], fields[8], fields[9])
  if left then
    redis.call('HSET', job, 'retries_left', left)
  end
  if times then
    redis.call('HSET', job, 'rq_pooled:requeues', count_of(fields[10]) + 1)
  else
    redis.call('HDEL', job, 'rq_pooled:requeues')
  end
  local ttl = seconds_of(fields[6])
  for _, key in ipairs({ job, job .. ':dependents', JOB .. ':' .. id .. ':dependencies' }) do
    if ttl then
      redis.call('EXPIRE', key, ttl)
    else
      redis.call('PERSIST', key)
    end
  end
  redis.call('PERSIST', RESULTS .. id)
  redis.call('SADD', QUEUES, list)
  if due ~= '' then
    redis.call('ZADD', scheduled, due, id)
  elseif not pass_limit(id, fields[11], fields[12], ARGV[6] == '1', clock, now) then
    redis.call(ARGV[6] == '1' and 'LPUSH' or 'RPUSH', list, id)
  end
  return 'done'
end

local words = {}
for at = 10, #ARGV, 3 do
  words[#words + 1] = requeue(ARGV[at], ARGV[at + 1], ARGV[at + 2])
end
return { 'ok', words }
