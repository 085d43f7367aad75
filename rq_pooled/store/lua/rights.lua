-- Find the commands that this user may not run. Each is tried on a key of a wrong type, so nothing changes.
--
-- KEYS[1]     a key of our own, which exists only while this runs
-- ARGV[1..]   per command: its name, number of words n, n words
-- returns     { command that is refused, what the server says ... }
local function forbidden(reply)
  local text = type(reply) == 'table' and reply.err or ''
  local said = string.find(text, 'ermission') or string.find(text, 'user executing') or string.find(text, 'ACL failure')
  return said and text
end

local set = redis.pcall('SET', KEYS[1], '1', 'PX', 1000)
if forbidden(set) then
  return { 'SET', set.err }
elseif set.err then
  -- The server is out of memory, so nothing can be tried.
  return {}
end
local refused = {}
local at = 1
while at <= #ARGV do
  local words = tonumber(ARGV[at + 1])
  local text = forbidden(redis.pcall(ARGV[at], unpack(ARGV, at + 2, at + 1 + words)))
  if text then
    table.insert(refused, ARGV[at])
    table.insert(refused, text)
  end
  at = at + 2 + words
end
redis.pcall('DEL', KEYS[1])
return refused
