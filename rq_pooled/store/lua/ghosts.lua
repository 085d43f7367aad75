-- Remove one page of a registry's entries whose job is gone.
--
-- KEYS[1]     a registry of job ids (rq:failed:<queue> and the like)
-- ARGV[1]     cursor of ZSCAN, 0 at first      ARGV[2]  about how many entries to look at
-- ARGV[3]     the caller, of whom one is enough  ARGV[4]  seconds for which it keeps the others away
-- returns     { next cursor, 0 at the end, -1 where another is at it, number of entries removed }
redis.call('DEL', NONE)
-- rights first
-- include is_alone
if not is_alone(ARGV[3], ARGV[4]) then
  return { '-1', 0 }
end
local reply, removed = redis.call('ZSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2]), 0
for i = 1, #reply[2], 2 do
  local id = reply[2][i]
  if redis.pcall('HEXISTS', JOB .. id, 'data') == 0 then
    removed = removed + redis.call('ZREM', KEYS[1], id)
  end
end
return { reply[1], removed }
