-- Remove entries of a registry whose job has expired or was deleted.
--
-- KEYS[1]     the registry                     KEYS[2]  lock of the sweep
-- ARGV[1]     owner of the lock, or '' to ignore it      ARGV[2]  life of the lock, seconds
-- ARGV[3]     rank to begin at                 ARGV[4]  entries at most
-- ARGV[5]     1: only count them
-- returns     { 'ok' | 'lost' (the lock is not ours any more), entries looked at, ghosts among them }

-- rights first
-- include holds
-- include has_job
if not holds(KEYS[2], ARGV[1], ARGV[2]) then
  return { 'lost' }
end
local start = tonumber(ARGV[3])
local ids = redis.call('ZRANGE', KEYS[1], start, start + ARGV[4] - 1)
local ghosts = {}
for _, id in ipairs(ids) do
  if not has_job(JOB .. id) then
    ghosts[#ghosts + 1] = id
  end
end
if #ghosts > 0 and ARGV[5] ~= '1' then
  redis.call('ZREM', KEYS[1], unpack(ghosts))
end
return { 'ok', #ids, #ghosts }
