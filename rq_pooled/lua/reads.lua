-- Read, and say how to recognise later that the same read would give the same reply.
--
-- KEYS        none: they are in the commands
-- ARGV        per command: number of words, word ...
-- returns     per command: { digest (as commit.lua computes it), reply }
-- Of the status of a job, on which others depend, only counts whether and how it has ended: while a hundred jobs with one
-- dependent run, each of them is queued and started, and none of that changes anything for it.
local UNFINISHED = { created = true, deferred = true, queued = true, scheduled = true, started = true }
local function digest(reply, command, field)
  if type(reply) == 'table' then
    return redis.sha1hex(cmsgpack.pack(reply))
  elseif command == 'HGET' and field == 'status' and UNFINISHED[reply] then
    return 'unfinished'
  end
  return tostring(reply)
end

local results, at = {}, 1
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  local reply = redis.call(unpack(ARGV, at + 1, at + words))
  results[#results + 1] = { digest(reply, ARGV[at + 1], ARGV[at + 3]), reply }
  at = at + 1 + words
end
return results
