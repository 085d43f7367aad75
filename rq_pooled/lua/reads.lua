-- Read, and say how to recognise later that the same read would give the same reply.
--
-- KEYS        none: they are in the commands
-- ARGV        per command: number of words, word ...
-- returns     per command: { digest (as commit.lua computes it), reply }
local function digest(reply)
  if type(reply) == 'table' then
    return redis.sha1hex(cmsgpack.pack(reply))
  end
  return tostring(reply)
end

local results, at = {}, 1
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  local reply = redis.call(unpack(ARGV, at + 1, at + words))
  results[#results + 1] = { digest(reply), reply }
  at = at + 1 + words
end
return results
