-- Record outcomes. Each one is a list of Redis commands that RQ's own code chose, applied only while its claim stands.
--
-- KEYS        none: they are in the commands
-- ARGV[1]     now, as RQ formats a date        ARGV[2]  this worker's claims hash
-- ARGV[3..]   per outcome: job id, execution id, wip queue, worker name, number of guards, number of commands, then
--             per guard: expected reply as reads.lua digests it, number of words, word ...
--             per command: number of words, word ...
-- returns     one of these per outcome: ok | lost (the claim is gone: nothing was recorded) | changed (a guard's
--             reply differs: nothing was recorded) | error text (a command failed: the claim stands)
--
-- A write that the server never denies comes first: under maxmemory a script may go on once it has written, so
-- results can be recorded when nothing else fits.
redis.call('DEL', 'rq_pooled:none')

local now, claims = ARGV[1], ARGV[2]

local function digest(reply)
  if type(reply) == 'table' then
    return redis.sha1hex(cmsgpack.pack(reply))
  end
  return tostring(reply)
end

local results, at = {}, 3
while at <= #ARGV do
  local id, execution, queue, name = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local guards, commands = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  at = at + 6
  local member = id .. ':' .. execution
  local wip, worker = 'rq:wip:' .. queue, 'rq:worker:' .. name
  local result = 'ok'
  if not redis.call('ZSCORE', wip, member) then
    result = 'lost'
  end
  for _ = 1, guards do
    local expected, words = ARGV[at], tonumber(ARGV[at + 1])
    if result == 'ok' and digest(redis.pcall(unpack(ARGV, at + 2, at + 1 + words))) ~= expected then
      result = 'changed'
    end
    at = at + 2 + words
  end
  for _ = 1, commands do
    local words = tonumber(ARGV[at])
    if result == 'ok' then
      local reply = redis.pcall(unpack(ARGV, at + 1, at + words))
      if type(reply) == 'table' and reply.err then
        result = reply.err
      end
    end
    at = at + 1 + words
  end
  if result == 'ok' or result == 'lost' then
    -- The claim goes last. For a lost one, this is what Job.cancel of a running job leaves lying about.
    redis.call('DEL', 'rq:execution:' .. member)
    redis.call('ZREM', 'rq:executions:' .. id, execution)
    if redis.call('HGET', worker, 'current_job') == id then
      redis.call('HDEL', worker, 'current_job')
    end
    if redis.call('EXISTS', worker) == 1 then
      redis.call('HSET', worker, 'state', 'idle', 'last_heartbeat', now)
    end
    redis.call('ZREM', 'rq_pooled:leases:' .. queue, member)
    redis.call('HDEL', claims, member)
    redis.call('ZREM', wip, member)
  end
  results[#results + 1] = result
end
return results
