-- Undo claims: put jobs back at the front of their queues, as if they had never been popped.
--
-- KEYS        none: they follow from the names
-- ARGV[1]     now, as RQ formats a date        ARGV[2]  this worker's claims hash
-- ARGV[3]     how often a job may stall        ARGV[4]  1: they had begun, which counts as a stall
-- ARGV[5..]   per claim: job id, execution id, wip queue, worker name, queue key to push to
-- returns     number of jobs that were put back
--
-- A job that would exceed its stalls stays claimed, with its lease ended, so the next search for stalled claims fails
-- it. A job whose queue cannot take it stays claimed, too, until it can.
-- As in commit.lua, a write that the server never denies comes first.
redis.call('DEL', NONE)
-- rights first

-- RQ
-- include numbers
-- include fits
-- include has_job
-- include show_rest

local now, claims, max_stalls, begun = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local pushed = 0
-- Jobs go back from the last to the first, so that the queue has its old order.
for at = #ARGV - 4, 5, -5 do
  local id, execution, queue, name, key = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local member = id .. ':' .. execution
  local job, worker = JOB .. id, WORKER .. name
  local stalls = count_of(redis.pcall('HGET', job, 'rq_pooled_stalls'))
  local stands = type(redis.pcall('ZSCORE', WIP .. queue, member)) == 'string'
  if stands and ((stalls + begun > max_stalls and stalls + begun > 0) or not fits(key, 'list')) then
    redis.pcall('ZADD', LEASES .. queue, 0, member)
  else
    if redis.pcall('ZREM', WIP .. queue, member) == 1 and has_job(job) then
      redis.call('HSET', job, 'status', 'queued', 'started_at', '', 'worker_name', '', 'last_heartbeat', '')
      if begun == 1 then
        redis.call('HSET', job, 'rq_pooled_stalls', stalls + 1)
      end
      local ttl = seconds_of(redis.call('HGET', job, 'ttl'))
      if ttl then
        redis.call('EXPIRE', job, ttl)
      end
      redis.call('LPUSH', key, id)
      pushed = pushed + 1
    end
    redis.call('DEL', EXECUTION .. member, ASIDE .. member)
    redis.pcall('ZREM', EXECUTIONS .. id, execution)
    redis.pcall('ZREM', LEASES .. queue, member)
  end
  -- This wakes the workers that wait for a place in the queue.
  redis.call('DEL', FULL .. queue)
  redis.pcall('HDEL', claims, member)
  redis.pcall('SREM', worker .. ':executions', member)
  show_rest(worker, now)
end
return pushed
