-- Take rq-scheduler's lock if one of its jobs is due and no other holds it.
--
-- KEYS[1]     rq:scheduler:scheduled_jobs      KEYS[2]  rq:scheduler_lock
-- ARGV[1]     the lock's value while it is ours, ARGV[2] its life, seconds
-- returns     number of jobs that are due, 0 if another one has the lock

-- rights first
-- include fits
for i, wanted in ipairs({ 'zset', 'string' }) do
  if not fits(KEYS[i], wanted) then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is no ' .. (i == 1 and 'sorted set' or 'text'))
  end
end
local time = redis.call('TIME')
local due = redis.call('ZCOUNT', KEYS[1], 0, time[1] .. string.format('.%06d', time[2]))
if due == 0 then
  return 0
end
local owner = redis.call('GET', KEYS[2])
if owner and owner ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
return due
