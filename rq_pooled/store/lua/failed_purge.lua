-- Delete failed jobs, their results, and all keys that RQ's Job.delete removes.
--
-- A job that rq-scheduler's schedule still names keeps its id for all runs, so only its failed run is removed.
--
-- KEYS[1]     the registry                     KEYS[2]  lock of the sweep
-- ARGV[1]     owner of the lock, or '' to ignore it      ARGV[2]  life of the lock, seconds
-- ARGV[3..]   per job: id, its ended_at or 'any'
-- returns     { 'ok' | 'lost' (the lock is not ours any more), { a word per job: done | ghost (it has no data: its
--             entry is removed) | gone (not in the registry) | changed (not failed, or failed anew) } }

-- rights first
-- include holds
-- include has_job
-- include is_of
if not holds(KEYS[2], ARGV[1], ARGV[2]) then
  return { 'lost' }
end
local registry = KEYS[1]

local function purge(id, ended_at)
  local job = JOB .. id
  if not redis.call('ZSCORE', registry, id) then
    return 'gone'
  end
  local fields = redis.pcall('HMGET', job, 'status', 'ended_at', 'group_id', 'origin')
  local exists = has_job(job)
  if exists and ((fields[1] ~= 'failed' and fields[1] ~= 'stopped')
      or (ended_at ~= 'any' and (fields[2] or '') ~= ended_at) or not is_of(registry, fields[4])) then
    return 'changed'
  end
  redis.call('ZREM', registry, id)
  if not exists then
    return 'ghost'
  end
  if type(redis.pcall('ZSCORE', SCHEDULED_JOBS, id)) == 'string' then -- else none, or an error
    redis.call('PERSIST', job)
    redis.call('UNLINK', RESULTS .. id)
    return 'done'
  end
  if fields[3] and fields[3] ~= '' then
    redis.pcall('SREM', GROUP .. fields[3], id)
  end
  local executions = EXECUTIONS .. id
  for _, execution in ipairs(redis.pcall('ZRANGE', executions, 0, 99)) do
    redis.call('UNLINK', EXECUTION .. id .. ':' .. execution)
  end
  redis.call('UNLINK', job, job .. ':dependents', JOB .. ':' .. id .. ':dependencies', RESULTS .. id, executions)
  return 'done'
end

local words = {}
for at = 3, #ARGV, 2 do
  words[#words + 1] = purge(ARGV[at], ARGV[at + 1])
end
return { 'ok', words }
