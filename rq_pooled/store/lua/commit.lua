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

-- Return the commands of RQ's handler for a plain success of the job, whose words begin at args[w], or nil and an error.
local function plain_success(id, execution, args, w, words)
  local worker, job, results = WORKER .. args[w + 1], JOB .. id, RESULTS .. id
  local ttl = bounded(args[w + 10])
  if not ttl then
    return nil, 'ERR an expire time of ' .. args[w + 10] .. ' seconds'
  end
  local entry = { 'XADD', results, 'MAXLEN', '~', '10', '*', 'type', '1', 'worker_name', args[w + 1] }
  if words > 11 then
    entry[11], entry[12] = 'return_value', args[w + 11]
  end
  local n = #entry
  entry[n + 1], entry[n + 2] = 'execution_id', execution
  entry[n + 3], entry[n + 4] = 'execution_started_at', args[w + 6]
  entry[n + 5], entry[n + 6] = 'execution_ended_at', args[w + 7]
  local commands = {
    { 'HINCRBY', worker, 'successful_job_count', '1' },
    { 'HINCRBYFLOAT', worker, 'total_working_time', args[w + 8] },
    { 'HSET', job, 'status', 'finished', 'started_at', args[w + 3], 'ended_at', args[w + 4],
      'last_heartbeat', args[w + 5], 'worker_name', args[w + 1] },
    entry,
    { 'ZADD', FINISHED .. args[w + 2], args[w + 9], id }
  }
  if (tonumber(ttl) or 0) > 0 then
    commands[6], commands[7] = { 'EXPIRE', results, ttl }, { 'EXPIRE', job, ttl }
    -- Dependents exist if the outcome was completed with the commands that enqueue them, see Outcomes.
    commands[8] = { 'EXPIRE', job .. ':dependents', ttl }
  elseif ttl == '-1' then
    commands[6] = { 'PERSIST', results }
  else -- Redis deletes a key whose expiry lies in the past, and so does RQ with it
    commands[6] = { 'EXPIRE', results, ttl }
  end
  return commands
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
while at <= #ARGV do
  local id, execution, queue, name = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local guards, commands = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  at = at + 6
  local member = id .. ':' .. execution
  local wip, worker = WIP .. queue, WORKER .. name
  local result = 'ok'
  local score = redis.pcall('ZSCORE', wip, member)
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
  -- Commands that replace those in ARGV, in lists, by the index at which the original begins.
  local first, made, slot = at, {}, {}
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
      if args and args[w] == 'PLAIN_SUCCESS' then
        made[at], failure = plain_success(id, execution, args, w, count)
      else
        made[at] = { args }
      end
      result = failure or result
      for _, command in ipairs(made[at] or {}) do
        result = result == 'ok' and refused(command[1], command[2], command[3], #command) or result
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
    elseif made[at] then
      for _, command in ipairs(made[at]) do
        result = result == 'ok' and apply(unpack(command)) or result
      end
    else
      result = apply(unpack(ARGV, at + 1, at + words))
    end
    at = at + 1 + words
  end
  if result == 'ok' or result == 'lost' then
    -- The claim is removed last. For a lost claim, these are the keys that Job.cancel of a running job leaves. A key of
    -- another type is no reason to stop, because the outcome is recorded, and the other outcomes wait.
    redis.pcall('DEL', EXECUTION .. member, ASIDE .. member)
    redis.pcall('ZREM', EXECUTIONS .. id, execution)
    redis.pcall('SREM', worker .. ':executions', member)
    show_rest(worker, now)
    redis.pcall('ZREM', LEASES .. queue, member)
    redis.pcall('HDEL', claims, member)
    redis.pcall('ZREM', wip, member)
    if result == 'lost' then
      tidy_up(id, queue)
      free_slot(id, slot)
    end
    freed[queue] = FULL .. queue
  end
  results[#results + 1] = result
end
-- Wake the workers that wait for a place in a queue with a limit of running jobs.
for _, key in pairs(freed) do
  redis.call('DEL', key)
end
return results
