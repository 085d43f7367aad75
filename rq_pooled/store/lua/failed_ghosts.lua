-- Remove entries of a registry whose job is gone: it has expired, or somebody has deleted it.
--
-- KEYS[1]     the registry                     KEYS[2]  lock of the sweep
-- ARGV[1]     owner of the lock, or '' to ignore it      ARGV[2]  life of the lock, seconds
-- ARGV[3]     rank to begin at                 ARGV[4]  entries at most
-- ARGV[5]     1: only count them
-- returns     { 'ok' | 'lost' (the lock is not ours any more), entries looked at, ghosts among them }

-- rights first
if ARGV[1] ~= '' then
  if redis.call('GET', KEYS[2]) ~= ARGV[1] then
    return { 'lost' }
  end
  redis.call('EXPIRE', KEYS[2], ARGV[2])
end
local start = tonumber(ARGV[3])
local ids = redis.call('ZRANGE', KEYS[1], start, start + ARGV[4] - 1)
local ghosts = {}
for _, id in ipairs(ids) do
  if redis.pcall('HEXISTS', 'rq:job:' .. id, 'data') ~= 1 then -- an error: a key of that name, but no job
    ghosts[#ghosts + 1] = id
  end
end
if #ghosts > 0 and ARGV[5] ~= '1' then
  redis.call('ZREM', KEYS[1], unpack(ghosts))
end
return { 'ok', #ids, #ghosts }
