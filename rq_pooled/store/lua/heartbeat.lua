-- Say that this worker is alive, renew the claims that still stand, and name those that were handed on.
--
-- KEYS        none: they follow from the names
-- ARGV[1]     now, as RQ formats a date        ARGV[2]  now, seconds since the epoch as RQ's executions keep it
-- ARGV[3]     lease, seconds                   ARGV[4]  abandon after, seconds
-- ARGV[5]     life of the workers' hashes, s   ARGV[6]  number of slots
-- ARGV[7]     this worker's claims hash
-- ARGV[8..]   per slot: worker name, state if it has no job else '', seconds its job has run
--             then per claim: job id, execution id, wip queue
-- returns     { { worker name whose hash is gone ... }, { number (from 1) of a claim that was handed on ... },
--             number of claims noted in the claims hash, server time in milliseconds }
--
-- As in commit.lua, a write that the server never denies comes first, so leases are renewed when memory is full.
redis.pcall('DEL', NONE)
-- RQ

local now, now_seconds = ARGV[1], ARGV[2]
local lease, abandon_after, worker_ttl = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local slots, claims = tonumber(ARGV[6]), ARGV[7]
local time = redis.call('TIME')
local clock = tonumber(time[1]) + tonumber(time[2]) / 1000000

-- Each command is only tried, because one key of another type must cost no other job its lease.
local missing, at = {}, 8
for _ = 1, slots do
  local worker = WORKER .. ARGV[at]
  local life = redis.pcall('HMGET', worker, 'birth', 'death')
  if (not life.err and (not life[1] or life[2])) or redis.pcall('SISMEMBER', WORKERS, worker) == 0 then
    missing[#missing + 1] = ARGV[at]
  else
    local fields = { 'last_heartbeat', now }
    if not RQ3 then
      fields[3], fields[4] = 'current_job_working_time', ARGV[at + 2]
    end
    if ARGV[at + 1] ~= '' then
      fields[#fields + 1], fields[#fields + 2] = 'state', ARGV[at + 1]
      -- A job that was handed on leaves this behind.
      redis.pcall('DEL', worker .. ':executions')
      redis.pcall('HDEL', worker, 'current_job')
    else
      redis.pcall('EXPIRE', worker .. ':executions', abandon_after + 60)
    end
    redis.pcall('HSET', worker, unpack(fields))
    redis.pcall('EXPIRE', worker, worker_ttl)
  end
  at = at + 3
end

-- include is_running
-- include has_job

local handed_on, number = {}, 0
while at <= #ARGV do
  number = number + 1
  local id, execution, queue = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local member = id .. ':' .. execution
  at = at + 3
  if redis.pcall('ZSCORE', WIP .. queue, member) then
    redis.pcall('ZADD', WIP .. queue, 'XX', clock + abandon_after, member)
    redis.pcall('ZADD', LEASES .. queue, clock + lease, member)
    -- A deleted hash is never recreated, because half an execution makes Job.delete raise.
    if redis.pcall('EXISTS', EXECUTION .. member) == 1 then
      redis.pcall('HSET', EXECUTION .. member, 'last_heartbeat', now_seconds)
      redis.pcall('EXPIRE', EXECUTION .. member, abandon_after)
      redis.pcall('ZADD', EXECUTIONS .. id, clock + abandon_after + 60, execution)
      redis.pcall('EXPIRE', EXECUTIONS .. id, abandon_after + 60)
    end
    if has_job(JOB .. id) then
      redis.pcall('HSET', JOB .. id, 'last_heartbeat', now)
    end
  else
    -- A cancelled or deleted job runs on, as in RQ, even if it has written its old status since (job.save()). Otherwise
    -- the job is in its queue again, or another worker has it.
    local status = redis.pcall('HGET', JOB .. id, 'status')
    local runs_on = not status or type(status) == 'table' or status == 'canceled' or status == 'stopped'
      or (status == 'started' and not is_running(id, queue))
    if not runs_on then
      handed_on[#handed_on + 1] = number
      redis.pcall('HDEL', claims, member)
    end
  end
end
local noted = redis.pcall('HLEN', claims)
if noted ~= 0 then
  redis.pcall('EXPIRE', claims, abandon_after + 60)
end
return { missing, handed_on, type(noted) == 'number' and noted or 0, math.floor(clock * 1000) }
