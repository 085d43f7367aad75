-- Move failed jobs to the dead letters of their queue.
--
-- A job that rq-scheduler's schedule still names is no dead letter: it runs again under this id, and its deletion here
-- would end the schedule. Its entry is removed; the job and its results stay.
--
-- KEYS[1]     the failed registry              KEYS[2]  lock of the sweep
-- KEYS[3]     the dead letters
-- ARGV[1]     owner of the lock, or '' to ignore it      ARGV[2]  life of the lock, seconds
-- ARGV[3]     seconds for which a dead letter is kept
-- ARGV[4..]   per job: id, its ended_at or 'any'
-- returns     { 'ok' | 'lost' (the lock is not ours any more), { a word per job: done | ghost (it has no data: its
--             entry is removed) | gone (not in the registry) | changed (not failed, or failed anew) } }

-- rights first
-- include holds
if not holds(KEYS[2], ARGV[1], ARGV[2]) then
  return { 'lost' }
end
-- include numbers
local registry, dead, age = KEYS[1], KEYS[3], seconds_of(ARGV[3]) or 1
local time = redis.call('TIME')
local ends = time[1] + age + time[2] / 1000000

-- include fits
-- include is_of

local function bury(id, ended_at)
  local job = JOB .. id
  if not redis.call('ZSCORE', registry, id) then
    return 'gone'
  end
  -- An error means that there is no job: a ghost.
  local fields = redis.pcall('HMGET', job, 'data', 'status', 'ended_at', 'origin')
  if not fields[1] then
    redis.call('ZREM', registry, id)
    return 'ghost'
  elseif (fields[2] ~= 'failed' and fields[2] ~= 'stopped') or (ended_at ~= 'any' and (fields[3] or '') ~= ended_at) then
    return 'changed'
  elseif not is_of(registry, fields[4]) or not fits(dead, 'zset') then
    return 'changed'
  end
  redis.call('ZREM', registry, id)
  if type(redis.pcall('ZSCORE', SCHEDULED_JOBS, id)) == 'string' then -- else none, or an error
    redis.call('PERSIST', job)
    return 'done'
  end
  -- Jobs keep the order of their burial.
  ends = ends + 0.000001
  -- All digits are written, because two rounded scores could be equal.
  redis.call('ZADD', dead, string.format('%.17g', ends), id)
  for _, key in ipairs({ job, job .. ':dependents', JOB .. ':' .. id .. ':dependencies', RESULTS .. id }) do
    redis.call('EXPIRE', key, age)
  end
  return 'done'
end

local words = {}
for at = 4, #ARGV, 2 do
  words[#words + 1] = bury(ARGV[at], ARGV[at + 1])
end
return { 'ok', words }
