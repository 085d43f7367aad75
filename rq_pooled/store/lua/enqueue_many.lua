-- Enqueue jobs in one step, each as RQ does: one with the id of another replaces it.
--
-- KEYS[1]     queue (rq:queue:<name>)      KEYS[2]  the set of all queues
-- ARGV[1..]   per job: id, L or R (front or back), ttl in seconds or -1, number of words, field, value ...
-- returns     the number of jobs

-- rights first
-- include numbers
-- include fits
-- include expire_job
-- include forget_older
if not fits(KEYS[1], 'list') then
  return redis.error_reply('WRONGTYPE ' .. KEYS[1] .. ' is no list')
elseif not fits(KEYS[2], 'set') then
  return redis.error_reply('WRONGTYPE ' .. KEYS[2] .. ' is no set')
end
local jobs, at, replaced = {}, 1, {}
while at <= #ARGV do
  if redis.call('EXISTS', JOB .. ARGV[at]) == 1 then
    if not fits(JOB .. ARGV[at], 'hash') then
      return redis.error_reply('WRONGTYPE ' .. JOB .. ARGV[at] .. ' is no hash')
    end
    replaced[at] = true
  end
  jobs[#jobs + 1] = at
  at = at + 4 + tonumber(ARGV[at + 3])
end
redis.call('SADD', KEYS[2], KEYS[1])
for _, first in ipairs(jobs) do
  local id, ttl = ARGV[first], ARGV[first + 2] ~= '-1' and seconds_of(ARGV[first + 2])
  if replaced[first] then
    forget_if_signed(JOB .. id, first + 4, first + 3 + tonumber(ARGV[first + 3]))
  end
  redis.call('HSET', JOB .. id, unpack(ARGV, first + 4, first + 3 + tonumber(ARGV[first + 3])))
  if ttl then
    expire_job(id, ttl)
  end
  redis.call(ARGV[first + 1] == 'L' and 'LPUSH' or 'RPUSH', KEYS[1], id)
end
return #jobs
