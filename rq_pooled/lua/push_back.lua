-- Undo claims: put jobs back at the front of their queues, as if they had never been popped.
--
-- KEYS        none: they follow from the names
-- ARGV[1]     now, as RQ formats a date        ARGV[2]  this worker's claims hash
-- ARGV[3]     -1, or how often a job may stall: then each had begun, and this counts as a stall
-- ARGV[4..]   per claim: job id, execution id, wip queue, worker name, queue key to push to
-- returns     number of jobs that were put back
--
-- A job that would exceed its stalls stays claimed, with its lease ended: whoever looks for stalled claims next fails it.
local now, claims, max_stalls = ARGV[1], ARGV[2], tonumber(ARGV[3])
local pushed = 0
-- From the last to the first, so that the order in the queue is the one in which they were popped.
for at = #ARGV - 4, 4, -5 do
  local id, execution, queue, name, key = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local member = id .. ':' .. execution
  local job, worker = 'rq:job:' .. id, 'rq:worker:' .. name
  local stalls = max_stalls >= 0 and tonumber(redis.call('HGET', job, 'rq_pooled_stalls') or '0') or -1
  if stalls >= max_stalls and stalls >= 0 and redis.call('ZSCORE', 'rq:wip:' .. queue, member) then
    redis.call('ZADD', 'rq_pooled:leases:' .. queue, 0, member)
  else
    if redis.call('ZREM', 'rq:wip:' .. queue, member) == 1 and redis.call('HEXISTS', job, 'data') == 1 then
      redis.call('HSET', job, 'status', 'queued', 'started_at', '', 'worker_name', '', 'last_heartbeat', '')
      if stalls >= 0 then
        redis.call('HINCRBY', job, 'rq_pooled_stalls', 1)
      end
      local ttl = tonumber(redis.call('HGET', job, 'ttl') or '')
      if ttl and ttl > 0 then
        redis.call('EXPIRE', job, ttl)
      end
      redis.call('LPUSH', key, id)
      pushed = pushed + 1
    end
    redis.call('DEL', 'rq:execution:' .. member)
    redis.call('ZREM', 'rq:executions:' .. id, execution)
    redis.call('ZREM', 'rq_pooled:leases:' .. queue, member)
  end
  redis.call('DEL', 'rq_pooled:full:' .. queue) -- wakes who waits for a place
  redis.call('HDEL', claims, member)
  if redis.call('HGET', worker, 'current_job') == id then
    redis.call('HDEL', worker, 'current_job')
    redis.call('HSET', worker, 'state', 'idle', 'last_heartbeat', now)
  end
end
return pushed
