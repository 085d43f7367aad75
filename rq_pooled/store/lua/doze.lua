-- Take the sentry's post of a crew where it is free, else sleep beside the sentry.
--
-- KEYS[1]     the sentry (rq_pooled:stats:sentry:<crew>)
-- KEYS[2]     the sleepers (rq_pooled:stats:sleepers:<crew>)
-- ARGV[1]     this worker's control channel         ARGV[2]  slots of it that have a job
-- ARGV[3]     seconds since it was given a job       ARGV[4]  life of the post, milliseconds
-- ARGV[5]     life of the set of sleepers, milliseconds
-- returns     1 if this worker is the sentry now, else 0
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[4]) then
  return 1
end
-- A worker that has lost its connection, or waited before it tried again, does not know that the post is still its own.
if redis.pcall('GET', KEYS[1]) == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  redis.pcall('ZREM', KEYS[2], ARGV[1])
  return 1
end
-- Among equals the one that had a job last is woken first, since its processes are in the processor's caches.
local time = redis.call('TIME')
-- rights first
redis.call('ZADD', KEYS[2], ARGV[2] * 1e10 + 1e10 - (time[1] + time[2] / 1e6 - ARGV[3]), ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return 0
