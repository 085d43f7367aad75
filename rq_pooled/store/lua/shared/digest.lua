-- Say how to recognise later that the same read gives the same reply. Of the status of a job, on which others depend, only
-- counts whether and how it has ended: while a hundred jobs with one dependent run, each of them is queued and started, and
-- none of that changes anything for it.
local UNFINISHED = { created = true, deferred = true, queued = true, scheduled = true, started = true,
  rate_limited = true, ready_to_enqueue = true }
local function digest(reply, command, field)
  if type(reply) == 'table' then
    return redis.sha1hex(cmsgpack.pack(reply))
  elseif command == 'HGET' and field == 'status' and UNFINISHED[reply] then
    return 'unfinished'
  end
  return tostring(reply)
end
