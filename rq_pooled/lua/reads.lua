-- Read, and say how to recognise later that the same read would give the same reply.
--
-- KEYS        none: they are in the commands
-- ARGV        per command: number of words, word ...
-- returns     per command: { digest (see shared/digest.lua), reply }

-- include digest

local results, at = {}, 1
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  local reply = redis.call(unpack(ARGV, at + 1, at + words))
  results[#results + 1] = { digest(reply, ARGV[at + 1], ARGV[at + 3]), reply }
  at = at + 1 + words
end
return results
