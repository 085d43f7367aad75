-- Put large values of an outcome aside, as long as its claim stands. The outcome names only their fields, and
-- commit.lua takes the values from here. The end of the claim removes them; else they expire.
--
-- KEYS[1]     where to (rq_pooled:aside:<job id>:<execution id>)
-- KEYS[2]     the started registry (rq:wip:<queue>)
-- ARGV[1]     job id:execution id              ARGV[2]  seconds to keep them
-- ARGV[3..]   field, value ...
-- returns     1, or 0 where the claim is gone and nothing was kept
--
-- As in commit.lua, a write that the server never denies comes first, so results are recorded when memory is full.
redis.call('DEL', NONE)
-- rights first

if type(redis.pcall('ZSCORE', KEYS[2], ARGV[1])) ~= 'string' then
  return 0
end
for at = 3, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
