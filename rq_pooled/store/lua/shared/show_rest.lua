-- Show in the hash of a worker, of which executions have ended, that it has nothing to do, or the job that is left to it.
-- A list of executions of another type counts as empty. Of several jobs that are left one is shown where the one that
-- was may be deleted: RQ 2 raises for it.
local function show_rest(worker, now, deleted)
  local executions = worker .. ':executions'
  local left = redis.pcall('SCARD', executions)
  left = type(left) == 'number' and left or 0
  if (left > 1 and (RQ3 or not deleted)) or redis.pcall('EXISTS', worker) ~= 1 then
    return
  end
  if left >= 1 then
    local member = not RQ3 and redis.pcall('SRANDMEMBER', executions)
    local id = type(member) == 'string' and string.match(member, '^(.*):[^:]*$')
    if id then
      redis.pcall('HSET', worker, 'current_job', id)
    end
  else
    if not RQ3 then
      redis.pcall('HDEL', worker, 'current_job')
    end
    redis.pcall('HSET', worker, 'state', 'idle', 'last_heartbeat', now)
  end
end
