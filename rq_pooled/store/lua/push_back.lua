-- Undo claims: put jobs back at the front of their queues, as if they had never been popped.
--
-- KEYS        none: they follow from the names
-- ARGV[1]     now, as RQ formats a date        ARGV[2]  this worker's claims hash
-- ARGV[3]     how often a job may stall        ARGV[4]  1: they had begun, which counts as a stall
-- ARGV[5..]   per claim, in the order of their places: job id, execution id, wip queue, worker name, queue key to push to,
--             the place that it was popped from, '' if that is not known
-- returns     number of jobs that were put back
--
-- Jobs that went back before, and were popped before these, stay in front of these: a job may wait for one that was
-- enqueued before it, which must not stand behind it then. A field of the job's hash keeps its place until it is claimed.
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
-- Most jobs that went back before and are looked at.
local MOST = 500
local pushed, back = 0, {}
-- Jobs go back from the last to the first, so that the queue has its old order.
for at = #ARGV - 5, 5, -6 do
  local id, execution, queue, name, key = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local place = ARGV[at + 5]
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
      if begun == 0 and place ~= '' then
        redis.call('HSET', job, 'rq_pooled_place', place)
      end
      back[key] = back[key] or {}
      table.insert(back[key], { id, place })
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
for key, ours in pairs(back) do
  local before = {}
  while #before < MOST do
    local id = redis.call('LINDEX', key, 0)
    local place = id and redis.pcall('HGET', JOB .. id, 'rq_pooled_place')
    if type(place) ~= 'string' or place >= ours[1][2] then
      break
    end
    table.insert(before, { redis.call('LPOP', key), place })
  end
  for _, one in ipairs(ours) do
    while #before > 0 and before[#before][2] > one[2] do
      redis.call('LPUSH', key, table.remove(before)[1])
    end
    redis.call('LPUSH', key, one[1])
  end
  while #before > 0 do
    redis.call('LPUSH', key, table.remove(before)[1])
  end
end
return pushed
