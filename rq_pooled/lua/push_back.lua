-- Undo claims: put jobs back at the front of their queues, as if they had never been popped.
--
-- KEYS        none: they follow from the names
-- ARGV[1]     now, as RQ formats a date        ARGV[2]  this worker's claims hash
-- ARGV[3..]   per claim: job id, execution id, wip queue, worker name, queue key to push to
-- returns     number of jobs that were put back
local now, claims = ARGV[1], ARGV[2]
local pushed = 0
-- From the last to the first, so that the order in the queue is the one in which they were popped.
for at = #ARGV - 4, 3, -5 do
  local id, execution, queue, name, key = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local member = id .. ':' .. execution
  local job, worker = 'rq:job:' .. id, 'rq:worker:' .. name
  if redis.call('ZREM', 'rq:wip:' .. queue, member) == 1 and redis.call('HEXISTS', job, 'data') == 1 then
    redis.call('HSET', job, 'status', 'queued', 'started_at', '', 'worker_name', '', 'last_heartbeat', '')
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
  redis.call('HDEL', claims, member)
  if redis.call('HGET', worker, 'current_job') == id then
    redis.call('HDEL', worker, 'current_job')
    redis.call('HSET', worker, 'state', 'idle', 'last_heartbeat', now)
  end
end
return pushed
