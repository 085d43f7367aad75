-- Return a digest of a reply, by which a later change can be recognised. Of a dependency's status only its end counts:
-- while it is queued and started, nothing changes for its dependents.
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
