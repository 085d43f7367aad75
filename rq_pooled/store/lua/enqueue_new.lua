-- Enqueue a job in one step, unless one with its id is there.
--
-- KEYS[1]     job (rq:job:<id>)          KEYS[2]  queue (rq:queue:<name>)      KEYS[3]  the set of all queues
-- ARGV[1]     id                         ARGV[2]  L or R (front or back)       ARGV[3]  ttl in seconds or -1
-- ARGV[4..]   field, value ... of the job
-- returns     1 | 0: a job with this id is there, and nothing was done

if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end

-- rights first
-- include numbers
-- include fits
for i, wanted in ipairs({ 'hash', 'list', 'set' }) do
  if not fits(KEYS[i], wanted) then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is no ' .. wanted)
  end
end

redis.call('SADD', KEYS[3], KEYS[2])
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
local ttl = seconds_of(ARGV[3])
if ttl then
  redis.call('EXPIRE', KEYS[1], ttl)
end
redis.call(ARGV[2] == 'L' and 'LPUSH' or 'RPUSH', KEYS[2], ARGV[1])
return 1
