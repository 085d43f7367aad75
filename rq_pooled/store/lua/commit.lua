-- Record outcomes. Each one is a list of Redis commands that RQ's own code chose, applied only while its claim stands.
--
-- KEYS        none: they are in the commands
-- ARGV[1]     now, as RQ formats a date        ARGV[2]  this worker's claims hash
-- ARGV[3..]   per outcome: job id, execution id, wip queue, worker name, number of guards, number of commands, then
--             per guard: expected reply as reads.lua digests it, number of words, word ...
--             per command: number of words, word ... One named PLAIN_SUCCESS stands for those of horse/success.py; its words
--             are worker name, origin, started_at, ended_at and last_heartbeat as RQ formats a date, when the
--             execution began and ended and how long the job ran in seconds, score in the finished registry,
--             result_ttl, and what the job returned, unless that was None. One named ASIDE is followed by a number, so
--             many pairs of a position among its words and a field of aside.lua, then its own words with these to be
--             filled in
-- returns     one of these per outcome: ok | lost (the claim is gone: nothing was recorded) | changed (a guard's
--             reply differs: nothing was recorded) | error text (a command failed: the claim stands)
--
-- A script cannot undo its writes, and a refused outcome is sent again and would count twice. So the errors that happen,
-- a key of an unexpected type and a number that the server refuses, are looked for before an outcome's first command. A
-- number that cannot be added to one in a hash is left out, because it is only a statistic.
--
-- A write that the server never denies comes first: under maxmemory a script may go on once it has written, so
-- results are recorded even when memory is full.
redis.call('DEL', NONE)
-- rights first of DEL EXISTS HDEL HSET SCARD SREM TYPE ZREM ZSCORE: RIGHTS .. ':' .. ARGV[2]

-- RQ limits
local now, claims = ARGV[1], ARGV[2]

-- include digest
-- include is_running
-- include show_rest

local EXPECTED = {
  HSET = 'hash', HMSET = 'hash', HSETNX = 'hash', HDEL = 'hash', HINCRBY = 'hash', HINCRBYFLOAT = 'hash',
  ZADD = 'zset', ZREM = 'zset', ZINCRBY = 'zset', ZREMRANGEBYSCORE = 'zset', SADD = 'set', SREM = 'set',
  LPUSH = 'list', RPUSH = 'list', LREM = 'list', XADD = 'stream', XTRIM = 'stream'
}
local MAX_WORDS = 7000 -- more than Lua can unpack at once
local LONGEST = 3155760000 -- seconds, 100 years; the server refuses what, in milliseconds, does not fit into 64 bits
local ONLY_COUNTS = { HINCRBY = true, HINCRBYFLOAT = true }

-- Return a number of seconds as EXPIRE takes it, or nil if the text is no number.
local function bounded(seconds)
  -- This is the usual case.
  if #seconds < 10 and string.find(seconds, '^%-?%d+$') then
    return seconds
  end
  local number = tonumber(seconds)
  return number and number == number and string.format('%.0f', math.max(-LONGEST, math.min(number, LONGEST))) or nil
end

-- Tell whether a command takes a job from a rate limit. A limit's key of another type has no slot to free.
local function of_limit(command, key)
  return command == 'ZREM' and string.sub(key, 1, #RATE_LIMIT) == RATE_LIMIT
end

-- Return an error where the user may not run a command, whose first word is a key. Servers before 7.0 were asked above.
local WITH_KEY = {
  DEL = true, EXPIRE = true, EXPIREAT = true, HGET = true, HMGET = true, PERSIST = true, PEXPIRE = true, SET = true,
  TTL = true, ZRANGE = true
}
local allowed, may = {}, redis.acl_check_cmd
local function forbidden(command, key)
  if may and not allowed[command] and (EXPECTED[command] or WITH_KEY[command]) then
    if not may(command, key) then
      return "NOPERM this user has no permissions to run the '" .. command .. "' command on " .. key
    end
    allowed[command] = true
  end
end

-- The types of the keys that this call has checked.
local types = {}
local function refused(command, key, value, words)
  local missing = forbidden(command, key)
  if missing then
    return missing
  end
  local expected = not of_limit(command, key) and EXPECTED[command]
  if words < 1 or words > MAX_WORDS then
    return 'ERR a command of ' .. words .. ' words'
  elseif expected == 'zset' and command == 'ZADD' and words == 4 then
    local score = tonumber(value)
    if not score or score ~= score then
      return 'ERR a score of ' .. tostring(value)
    end
  end
  if expected then
    local found = types[key] or redis.call('TYPE', key).ok
    types[key] = found
    if found == 'none' then
      types[key] = nil
    elseif found ~= expected then
      return 'WRONGTYPE ' .. command .. ' needs a ' .. expected .. ', but ' .. key .. ' is a ' .. found
    end
  end
end

-- Return the command whose words begin at ARGV[w] with ASIDE, with what was put aside filled in, or nil and an error.
local function filled_in(member, w, words)
  local pairs_end = w + 1 + 2 * (tonumber(ARGV[w + 1]) or words)
  local command, missing = {}, forbidden('HGET', ASIDE .. member)
  if missing then
    return nil, missing
  end
  for i = pairs_end + 1, w + words - 1 do
    command[#command + 1] = ARGV[i]
  end
  for i = w + 2, math.min(pairs_end, w + words - 1), 2 do
    local value = redis.pcall('HGET', ASIDE .. member, ARGV[i + 1])
    if type(value) ~= 'string' or not command[tonumber(ARGV[i])] then
      return nil, 'ERR the server has lost a large value of the outcome, which was written before it'
    end
    command[tonumber(ARGV[i])] = value
  end
  return command
end

-- Look at what recording a plain success of the job may be refused for; its words begin at args[w]. Where it is all of its
-- outcome, its first writes show what the job's own keys are, see below.
local function refused_success(id, args, w, alone)
  local job, results, finished = JOB .. id, RESULTS .. id, FINISHED .. args[w + 2]
  local score = tonumber(args[w + 9])
  if not bounded(args[w + 10]) then
    return 'ERR an expire time of ' .. args[w + 10] .. ' seconds'
  elseif not score or score ~= score then
    return 'ERR a score of ' .. args[w + 9]
  end
  return forbidden('HINCRBY', job) or forbidden('HINCRBYFLOAT', job) or forbidden('EXPIRE', job) or forbidden('PERSIST', job)
    or refused('ZADD', finished, args[w + 9], 4)
    or (alone and (forbidden('HSET', job) or forbidden('XADD', results)))
    or (not alone and (refused('HSET', job, '', 12) or refused('XADD', results, '', 18)))
    or nil
end

-- What is written for all outcomes of a call together: of workers their counts and ended executions, of queues their
-- finished jobs and removed claims. A list of words begins with its key.
local counts, finished_jobs, ended = {}, {}, {}
local function add(lists, key, first, second)
  local list = lists[key] or { key }
  list[#list + 1] = first
  list[#list + 1] = second
  lists[key] = list
end

-- Write what RQ's handler of a plain success writes. The entry among the results is the one write that would count twice.
-- It is preceded by the one that fails where the hash is none, and where it fails itself, the job runs as before.
local function record_success(id, execution, args, w, words, has_dependents)
  local job, results, worker, ttl = JOB .. id, RESULTS .. id, args[w + 1], bounded(args[w + 10])
  local reply = redis.pcall('HSET', job, 'status', 'finished', 'started_at', args[w + 3], 'ended_at', args[w + 4],
    'last_heartbeat', args[w + 5], 'worker_name', worker)
  if type(reply) == 'table' then
    return reply.err
  end
  if words > 11 then
    reply = redis.pcall('XADD', results, 'MAXLEN', '~', '10', '*', 'type', '1', 'worker_name', worker,
      'return_value', args[w + 11], 'execution_id', execution,
      'execution_started_at', args[w + 6], 'execution_ended_at', args[w + 7])
  else
    reply = redis.pcall('XADD', results, 'MAXLEN', '~', '10', '*', 'type', '1', 'worker_name', worker,
      'execution_id', execution, 'execution_started_at', args[w + 6], 'execution_ended_at', args[w + 7])
  end
  if type(reply) == 'table' and reply.err then
    redis.pcall('HSET', job, 'status', 'started')
    return reply.err
  end
  if ttl == '-1' then
    redis.pcall('PERSIST', results)
  else -- Redis deletes a key whose expiry lies in the past, and so does RQ with it
    redis.pcall('EXPIRE', results, ttl)
    if tonumber(ttl) > 0 then
      redis.pcall('EXPIRE', job, ttl)
      if has_dependents then
        redis.pcall('EXPIRE', job .. ':dependents', ttl)
      end
    end
  end
  add(finished_jobs, FINISHED .. args[w + 2], args[w + 9], id)
  local count = counts[worker] or { 0, args[w + 8] }
  count[1], counts[worker] = count[1] + 1, count
  if count[1] > 1 then
    count[2] = string.format('%.17g', (tonumber(count[2]) or 0) + (tonumber(args[w + 8]) or 0))
  end
  return 'ok'
end

-- A job that was cancelled or deleted while it ran may have written its hash since (save, save_meta). Such a hash is
-- partial, or its old status says for ever that the job runs. Correct the status, or let the hash expire in a day.
local function tidy_up(id, queue)
  local job = JOB .. id
  local found = redis.pcall('HMGET', job, 'status', 'data')
  if found.err or (found[1] and found[1] ~= 'started') or (found[2] and not found[1]) then
    return
  end
  if is_running(id, queue) then
    return
  end
  if found[2] and type(redis.pcall('ZSCORE', CANCELED .. queue, id)) == 'string' then
    redis.pcall('HSET', job, 'status', 'canceled')
  elseif redis.pcall('TTL', job) == -1 then
    redis.pcall('EXPIRE', job, 86400)
  end
end

-- Free the slot of a job that was cancelled or deleted while it ran. RQ's own code checks whether the job still needs it.
local function free_slot(id, slot)
  if not RQ3 then
    return
  end
  local key, concurrency = slot[1], slot[2]
  if not key then
    local found = redis.pcall('HMGET', JOB .. id, 'rate_limit_key', 'rate_limit_concurrency')
    if not found[1] or found[1] == '' then
      return
    end
    key, concurrency = RATE_LIMIT .. found[1] .. ':allowed', found[2]
  end
  if tonumber(concurrency) then
    local time = redis.call('TIME')
    local waiting = string.sub(key, 1, -1 - #'allowed') .. 'rate_limited'
    pcall(rq_named.release_stale, { key, waiting, JOB .. id, EXECUTIONS .. id },
      { concurrency, time[1] + time[2] / 1000000, now, QUEUE, JOB, id })
  end
end

-- Run one command of an outcome whose earlier commands have succeeded; return the outcome's result after it.
local function apply(...)
  if ... == 'EVALSHA' then
    local words = { ... }
    local keys, arguments = {}, {}
    for i = 4, #words do
      if i < 4 + tonumber(words[3]) then
        keys[#keys + 1] = words[i]
      else
        arguments[#arguments + 1] = words[i]
      end
    end
    -- The outcome is written already and stands. An error here costs a slot, which RQ's maintenance frees.
    pcall(rq_scripts[words[2]], keys, arguments)
    return 'ok'
  end
  local reply = redis.pcall(...)
  return type(reply) == 'table' and reply.err and not ONLY_COUNTS[...] and not of_limit(...) and reply.err or 'ok'
end

local results, freed, at = {}, {}, 3
local members, claimed, worked = {}, {}, {} -- the claims that have ended: themselves, by queue, and by worker
local deleted = {} -- workers whose jobs may be deleted, which a plain success is not
local function record_all()
  while at <= #ARGV do
    local id, execution, queue, name = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    local guards, commands = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
    at = at + 6
    local member = id .. ':' .. execution
    local wip = WIP .. queue
    local result = 'ok'
    local score = not ended[member] and redis.pcall('ZSCORE', wip, member)
    if not score then
      local job = JOB .. id -- what tidy_up needs
      result = forbidden('HMGET', job) or forbidden('ZRANGE', job) or forbidden('TTL', job) or forbidden('EXPIRE', job)
        or 'lost'
    elseif type(score) == 'table' and score.err then
      result = score.err
    end
    for _ = 1, guards do
      local expected, words = ARGV[at], tonumber(ARGV[at + 1])
      if result == 'ok' then
        local reply = redis.pcall(unpack(ARGV, at + 2, at + 1 + words))
        if digest(reply, ARGV[at + 2], ARGV[at + 4]) ~= expected then
          result = 'changed'
        end
      end
      at = at + 2 + words
    end
    -- Commands that replace those in ARGV, and plain successes, by the index at which the original begins.
    local first, made, successes, slot = at, {}, {}, {}
    for _ = 1, commands do
      local words = tonumber(ARGV[at])
      if ARGV[at + 1] == 'EVALSHA' then
        slot[1], slot[2] = ARGV[at + 4], ARGV[at + 6]
      end
      -- After an error the loop only finds where the next outcome begins.
      if result ~= 'ok' then
      elseif ARGV[at + 1] == 'PLAIN_SUCCESS' or ARGV[at + 1] == 'ASIDE' then
        local args, w, count, failure = ARGV, at + 1, words, nil
        if ARGV[w] == 'ASIDE' then
          args, failure = filled_in(member, w, words)
          w, count = 1, args and #args
        end
        if failure then
          result = failure
        elseif args[w] == 'PLAIN_SUCCESS' then
          -- Dependents exist if the outcome was completed with the commands that enqueue them: then a guard knows them.
          local unknown = guards == 0 and redis.pcall('EXISTS', JOB .. id .. ':dependents') ~= 0
          result = unknown and 'changed' or refused_success(id, args, w, commands == 1) or 'ok'
          successes[at] = { args, w, count }
        else
          result = refused(args[1], args[2], args[3], #args) or 'ok'
          made[at] = args
        end
      else
        result = refused(ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], words) or 'ok'
        if ARGV[at + 1] == 'EVALSHA' then -- one of RQ's own, for its rate limits
          result = not rq_scripts[ARGV[at + 2]] and 'ERR an unknown script ' .. ARGV[at + 2] or result
        end
        if ARGV[at + 1] == 'EXPIRE' and words == 3 then
          local seconds = bounded(ARGV[at + 3])
          result = seconds and result or 'ERR an expire time of ' .. ARGV[at + 3] .. ' seconds'
          ARGV[at + 3] = seconds or ARGV[at + 3]
        end
      end
      at = at + 1 + words
    end
    at = first
    for _ = 1, commands do
      local words = tonumber(ARGV[at])
      if result ~= 'ok' then -- as above
      elseif successes[at] then
        local success = successes[at]
        result = record_success(id, execution, success[1], success[2], success[3], guards > 0)
      elseif made[at] then
        result = apply(unpack(made[at]))
      else
        result = apply(unpack(ARGV, at + 1, at + words))
      end
      at = at + 1 + words
    end
    if result == 'ok' or result == 'lost' then
      -- Of a lost claim these are the keys that Job.cancel of a running job leaves. A key of another type is no reason to
      -- stop, because the outcome is recorded, and the other outcomes wait.
      redis.pcall('DEL', EXECUTION .. member, ASIDE .. member)
      redis.pcall('ZREM', EXECUTIONS .. id, execution)
      if result == 'lost' then
        redis.pcall('ZREM', LEASES .. queue, member)
        redis.pcall('ZREM', wip, member)
        tidy_up(id, queue)
        free_slot(id, slot)
      end
      ended[member] = true
      members[#members + 1] = member
      add(claimed, queue, member)
      add(worked, WORKER .. name, member)
      deleted[WORKER .. name] = deleted[WORKER .. name] or result == 'lost' or not next(successes)
      freed[queue] = FULL .. queue
    end
    results[#results + 1] = result
  end
end
-- Where an outcome has this script itself fail, what was recorded before it has its claims removed all the same.
local fine, fault = pcall(record_all)
for name, count in pairs(counts) do
  redis.pcall('HINCRBY', WORKER .. name, 'successful_job_count', count[1])
  redis.pcall('HINCRBYFLOAT', WORKER .. name, 'total_working_time', count[2])
end
for _, words in pairs(finished_jobs) do
  redis.pcall('ZADD', unpack(words))
end
for worker, words in pairs(worked) do
  redis.pcall('SREM', worker .. ':executions', unpack(words, 2))
  show_rest(worker, now, deleted[worker])
end
-- The claims are removed last.
if #members > 0 then
  redis.pcall('HDEL', claims, unpack(members))
end
for queue, words in pairs(claimed) do
  redis.pcall('ZREM', LEASES .. queue, unpack(words, 2))
  redis.pcall('ZREM', WIP .. queue, unpack(words, 2))
end
-- Wake the workers that wait for a place in a queue with a limit of running jobs.
for _, key in pairs(freed) do
  redis.call('DEL', key)
end
return fine and results or redis.error_reply(tostring(fault))
