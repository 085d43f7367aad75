-- Pop jobs and mark them started, in one atomic step: a job is either in its queue or claimed, never neither.
--
-- KEYS[1..n]  queues (rq:queue:<name>), in the order in which to pop
-- ARGV[1]     now, as RQ formats a date        ARGV[2]  now, seconds since the epoch as RQ's executions keep it
-- ARGV[3]     lease, seconds                   ARGV[4]  abandon after, seconds
-- ARGV[5]     bytes of job data to stop at     ARGV[6]  default | round_robin | random
-- ARGV[7]     seed for random                  ARGV[8]  this worker's claims hash
-- ARGV[9]     what execution ids begin with     ARGV[10] jobs in all; those beyond one per slot are claimed ahead
-- ARGV[11]    crew whose sleepers it wakes, '' for none
-- ARGV[12]    1 if this worker is its sentry   ARGV[13] life of a sentry's post, milliseconds
-- ARGV[14]    1 if it takes nothing while a claim of this worker stands: it is sent behind the commit that ends it
-- ARGV[15..]  per free slot: worker name; none where a sentry only hands on its post
-- returns     false where a claim stands, else
--             { suspended (0/1), held, { stale id ... }, { text ... one per job, for one slot after the other, and again
--             from the first },
--             { { queue key, microseconds until it may start a job, -1 or -2, key that is there until that may change }
--             ... one per queue that has jobs and whose limit is reached, or that is paused (-2) },
--             1 if work may be left, 1 if this worker is still the sentry, what stands between two words of a job }
--             A job's text is queue key, job id, wip queue, number of fields that were left out of its hash, these, and
--             field, value ... as before the claim. Between each two stands ARGV[9]. No value has it, since it is new.
--             Clients cut one text much faster than they read forty.
-- RQ
if ARGV[14] == '1' and redis.call('EXISTS', ARGV[8]) == 1 then
  return false
elseif redis.call('EXISTS', SUSPENDED) == 1 then
  return { 1, 0, {}, {}, {}, 1, tonumber(ARGV[12]), '' }
end

-- This changes nothing, but is refused when the server is out of memory; after the first LPOP no command would be.
redis.call('LPUSHX', NONE, '')
local ASKED = RIGHTS .. ':' .. ARGV[8]
-- rights first of EXPIRE HGET HGETALL HKEYS HMGET HSET HSTRLEN LPUSH PERSIST SADD ZADD ZREM: ASKED

local now, now_seconds = ARGV[1], ARGV[2]
local lease, abandon_after = tonumber(ARGV[3]), tonumber(ARGV[4])
local max_bytes, strategy = tonumber(ARGV[5]), ARGV[6]
local claims = ARGV[8]
local time = redis.call('TIME')
local clock = tonumber(time[1]) + tonumber(time[2]) / 1000000
-- Lua cannot unpack more than some 8000 values at once.
local MAX_NAMES = 5000
-- The ids without data, or held back, that one call may read, since it must not hold up the server.
local MAX_SKIPPED = 1000

-- Return an error where the user may not do what few jobs need: those with limits, with spent-once keys, or queued twice.
local few, known
local function of_few()
  if not known then
    known, few = true, (function()
      -- rights first: ASKED
    end)()
  end
  return few
end

-- include numbers
-- include fits
-- include read_job
-- include has_job

-- Limits, see queue/limits.py, are read in one step for all queues, and not at all where none is set.
local limits, closed, limited = {}, {}, {}
local microseconds = tonumber(time[1]) * 1000000 + tonumber(time[2])
-- A key of another type holds no limits, and must not keep all jobs from running.
if redis.call('EXISTS', LIMITS) == 1 and fits(LIMITS, 'hash') then
  if of_few() then
    return of_few()
  end
  for first = 1, #KEYS, MAX_NAMES do
    local names = {}
    for i = first, math.min(#KEYS, first + MAX_NAMES - 1) do
      names[#names + 1] = string.sub(KEYS[i], #QUEUE + 1)
    end
    for i, text in ipairs(redis.call('HMGET', LIMITS, unpack(names))) do
      local starts, period, running = string.match(text or '', '^%a+ (%d+) (%d+) (%d+)$')
      if starts and #text <= 65 then -- else no limit, see limit.lua
        -- The bounds are those of queue/limits.py, because LINDEX and PEXPIRE refuse larger numbers.
        local limit = {
          starts = math.min(tonumber(starts), 100000),
          period = math.min(tonumber(period), 31622400000000),
          list = STARTS .. names[i]
        }
        if limit.starts > 0 and not fits(limit.list, 'list') then
          -- The key is ours, and a value of another type counts no starts.
          redis.call('DEL', limit.list)
        end
        if tonumber(running) > 0 and fits(WIP .. names[i], 'zset') then
          -- Standing claims count. The claim of a dead worker counts until it is handed on or given up.
          limit.places = tonumber(running) - redis.call('ZCOUNT', WIP .. names[i], '(' .. clock, '+inf')
        end
        limits[KEYS[first + i - 1]] = limit
      end
    end
  end
end

-- A paused queue, see queue/pause.py, is one of which no job may run.
if redis.call('EXISTS', PAUSED) == 1 and fits(PAUSED, 'hash') then
  if of_few() then
    return of_few()
  end
  for _, key in ipairs(KEYS) do
    if redis.call('HEXISTS', PAUSED, string.sub(key, #QUEUE + 1)) == 1 then
      limits[key] = { starts = 0, places = 0, paused = true }
    end
  end
end

-- Tell whether the queue may start a job now. A queue that may not, and has jobs, is reported once, with a key that its
-- worker watches while it sleeps. NX leaves an existing key untouched, so no worker is woken.
local function is_open(key)
  local limit = limits[key]
  if not limit or closed[key] then
    return not limit
  end
  local wait, watch, life = limit.paused and -2 or -1, FULL, 120
  if not limit.places or limit.places > 0 then
    local oldest = limit.starts > 0 and tonumber(redis.call('LINDEX', limit.list, -limit.starts) or '')
    wait = oldest and math.min(limit.period, oldest + limit.period - microseconds) or 0
    if wait <= 0 then
      return true
    end
    watch, life = LIMITED, math.ceil(wait / 1000000) + 60
  end
  closed[key] = true
  if redis.call('EXISTS', key) == 1 then
    watch = watch .. string.sub(key, #QUEUE + 1)
    redis.call('SET', watch, '1', 'NX', 'EX', life)
    limited[#limited + 1] = { key, wait, watch }
  end
  return false
end

-- Count a start.
local function note_start(key)
  local limit = limits[key]
  if not limit then
    return
  end
  if limit.places then
    limit.places = limit.places - 1
  end
  if limit.starts > 0 then
    redis.call('RPUSH', limit.list, string.format('%.0f', microseconds))
    redis.call('LTRIM', limit.list, -limit.starts, -1)
    redis.call('PEXPIRE', limit.list, math.ceil(limit.period / 1000) + 1)
  end
end

local order = {}
for i, key in ipairs(KEYS) do
  order[i] = key
end
if strategy == 'random' then
  math.randomseed(tonumber(ARGV[7]))
end

-- Queues whose keys hold another type, and the error of the first one.
local spoilt, failure = {}, nil

-- Tell whether a job of the queue may be claimed ahead: it is one beyond those that all workers' slots can take at once,
-- and nothing limits when it begins.
local beyond = {}
local function has_more(key)
  if limits[key] then
    return false
  end
  local number = beyond[key]
  if not number then
    local length = redis.pcall('LLEN', key)
    local slots = redis.pcall('SCARD', WORKERS .. ':' .. string.sub(key, #QUEUE + 1))
    number = type(length) == 'number' and type(slots) == 'number' and length - slots or 0
  end
  beyond[key] = number - 1
  return number > 0
end

-- Pop the next id.
local function pop(ahead)
  if strategy == 'random' then
    for i = #order, 2, -1 do
      local j = math.random(i)
      order[i], order[j] = order[j], order[i]
    end
  end
  for _, key in ipairs(order) do
    local id = not spoilt[key] and (not ahead or has_more(key)) and is_open(key) and redis.pcall('LPOP', key)
    if type(id) == 'table' then
      local wrong_type = string.find(id.err, 'WRONGTYPE', 1, true)
      spoilt[key], failure = true, failure or (wrong_type and 'WRONGTYPE ' .. key .. ' is no list' or id.err)
    elseif id then
      return key, id
    end
  end
end

-- Tell whether a queue that may start a job has one.
local function has_jobs()
  for first = 1, #KEYS, MAX_NAMES do
    local open = {}
    for i = first, math.min(#KEYS, first + MAX_NAMES - 1) do
      if not closed[KEYS[i]] and not spoilt[KEYS[i]] then
        open[#open + 1] = KEYS[i]
      end
    end
    if #open > 0 and redis.call('EXISTS', unpack(open)) > 0 then
      return true
    end
  end
  return false
end

-- Under round_robin the queue of a claimed job moves to the end, as in RQ's reorder_queues; a ghost takes no turn.
local function pass_turn(key)
  if strategy == 'round_robin' then
    repeat
      table.insert(order, table.remove(order, 1))
    until order[#order] == key
  end
end

-- Write the claim itself. If that fails, the job goes back, and its queue is skipped so that others are served.
local function register(key, id, queue, execution)
  local wip, leases, member = WIP .. queue, LEASES .. queue, id .. ':' .. execution
  local lease_reply = redis.pcall('ZADD', leases, clock + lease, member)
  local reply = type(lease_reply) == 'table' and lease_reply or redis.pcall('ZADD', wip, clock + abandon_after, member)
  if type(reply) ~= 'table' then
    return true
  end
  redis.pcall('ZREM', leases, member)
  redis.call('LPUSH', key, id)
  spoilt[key] = true
  local wrong_type = string.find(reply.err, 'WRONGTYPE', 1, true)
  local spoilt_set = 'WRONGTYPE ' .. (reply == lease_reply and leases or wip) .. ' is no sorted set'
  failure = failure or (wrong_type and spoilt_set or reply.err)
end

-- include is_running

-- Tell whether an execution of the popped job, which lists executions, runs already.
local function runs_already(job, id, key)
  local origin = redis.pcall('HGET', job, 'origin')
  return is_running(id, type(origin) == 'string' and origin ~= '' and origin or string.sub(key, #QUEUE + 1))
end

-- Look at a spent-once key, see store/once.py: return the id of the job that spent it, and whether one that has it is running.
local function look_at(once)
  local spender = redis.pcall('GET', ONCE .. once)
  if type(spender) == 'string' then
    return spender, false
  end
  local holder = redis.pcall('GET', ONCE_RUNNING .. once)
  local length, rest = string.match(type(holder) == 'string' and holder or '', '^(%d+) (.*)$')
  if not length then
    return false, false
  end
  local queue, member = string.sub(rest, 1, length), string.sub(rest, length + 1)
  return false, type(redis.pcall('ZSCORE', WIP .. queue, member)) == 'string'
end

-- Tell whether a hash's key belongs to this job, and not to an earlier one with its id, see store/once.py.
local function has_its_key(of, created_at)
  return not of or of == created_at
end

local function field_of(raw, name)
  for i = 1, #raw, 2 do
    if raw[i] == name then
      return raw[i + 1]
    end
  end
end

local stale, held, jobs, bytes = {}, {}, {}, 0
-- Spent-once keys whose jobs this call holds back; many jobs may wait for one, so their data are not read.
local taken_keys = {}
local executions, most, slots = ARGV[9], tonumber(ARGV[10]), #ARGV - 14
local last, dry = nil, false
while #jobs < most and bytes < max_bytes and #stale + #held < MAX_SKIPPED do
  local ahead = #jobs >= slots
  local execution = executions .. string.format('%08x', #jobs)
  local key, id = pop(ahead)
  if not id then
    dry = not ahead
    break
  end
  last = key
  local job = JOB .. id
  local listed = redis.call('EXISTS', EXECUTIONS .. id) == 1 -- seldom
  local refused = listed and of_few()
  local running = listed and not refused and runs_already(job, id, key)
  local raw, data, origin, once, timeout, size = {}, false, false, false, false, 0
  local spender, taken, left_out
  if not running and next(taken_keys) then
    local fields = redis.pcall('HMGET', job, 'rq_pooled_once', 'rq_pooled_once_of', 'created_at')
    taken = has_its_key(fields[2], fields[3]) and taken_keys[fields[1]]
  end
  if running or taken then
    data = has_job(job)
  else
    raw, left_out = read_job(job)
    data = left_out ~= nil
  end
  for i = 1, #raw, 2 do
    if raw[i] == 'data' then
      data = true
    elseif raw[i] == 'origin' and raw[i + 1] ~= '' then
      origin = raw[i + 1]
    elseif raw[i] == 'timeout' then
      timeout = seconds_of(raw[i + 1])
    elseif raw[i] == 'rq_pooled_once' then
      once = raw[i + 1]
    end
    size = size + #raw[i + 1]
  end
  if once and not has_its_key(field_of(raw, 'rq_pooled_once_of'), field_of(raw, 'created_at')) then
    once = false
  end
  refused = refused or (once and of_few())
  if once and data and not refused then
    spender, taken = look_at(once)
    taken_keys[once] = taken or nil
  end
  -- A job that is held back does not count, because others behind it must still be claimed.
  bytes = bytes + (taken and 0 or size)
  if refused then
    redis.call('LPUSH', key, id)
    spoilt[key], failure = true, failure or refused.err
  elseif not data then
    stale[#stale + 1] = id
  elseif running or taken then
    -- The job is queued twice, or another one with its spent-once key runs, and the two must not run together.
    held[#held + 1] = { key, id }
  elseif RQ3 and ahead and (field_of(raw, 'rate_limit_key') or '') ~= '' then
    redis.call('LPUSH', key, id)
    beyond[key] = 0
  elseif register(key, id, origin or string.sub(key, #QUEUE + 1), execution) then
    -- The claim stands from here on, so the commands that follow cannot fail, or are only tried.
    local name = ARGV[15 + #jobs % slots]
    pass_turn(key)
    local queue = origin or string.sub(key, #QUEUE + 1)
    local member = id .. ':' .. execution
    redis.call('HSET', job, 'status', 'started', 'started_at', now, 'last_heartbeat', now, 'worker_name', name)
    redis.call('PERSIST', job)
    redis.call('HSET', EXECUTION .. member, 'id', execution, 'job_id', id, 'created_at', now_seconds,
      'last_heartbeat', now_seconds, 'worker_name', name)
    if key ~= QUEUE .. queue then
      -- The job returns to this queue when it stalls.
      redis.call('HSET', EXECUTION .. member, 'queue_key', key)
    end
    redis.call('EXPIRE', EXECUTION .. member, abandon_after)
    redis.pcall('ZADD', EXECUTIONS .. id, clock + abandon_after + 60, execution)
    redis.call('EXPIRE', EXECUTIONS .. id, abandon_after + 60)
    redis.pcall('HSET', claims, member, string.format('%d %d ', #queue, #key) .. queue .. key .. name)
    redis.pcall('SADD', WORKER .. name .. ':executions', member)
    if not ahead then
      redis.pcall('HSET', WORKER .. name, 'state', 'busy', 'last_heartbeat', now)
      redis.call('EXPIRE', WORKER .. name .. ':executions', abandon_after + 60)
      if not RQ3 then
        redis.pcall('HSET', WORKER .. name, 'current_job', id, 'current_job_working_time', 0)
      end
    end
    if spender then -- it is not run, only recorded
      raw[#raw + 1], raw[#raw + 2] = 'rq_pooled_once_spender', spender
    else
      note_start(key)
    end
    if once and not spender then
      redis.call('SET', ONCE_RUNNING .. once, #queue .. ' ' .. queue .. member)
      if timeout and timeout > 0 then -- where no worker is left to take it away
        redis.call('EXPIRE', ONCE_RUNNING .. once, 2 * timeout + 86400)
      end
      raw[#raw + 1], raw[#raw + 2] = 'rq_pooled_once_running', '1'
    end
    if size > LARGE and not left_out then
      raw, left_out = lighten(raw)
    end
    local head = { key, id, queue, left_out and #left_out or 0 }
    for _, field in ipairs(left_out or {}) do
      head[#head + 1] = field
    end
    jobs[#jobs + 1] = table.concat(head, executions) .. executions .. table.concat(raw, executions)
  end
end
for i = #held, 1, -1 do
  redis.call('LPUSH', held[i][1], held[i][2])
end
if #jobs > 0 then
  -- The note is needed only until the reply has arrived; it expires in case the worker is killed.
  redis.call('EXPIRE', claims, abandon_after + 60)
end
if failure and #jobs == 0 and #stale == 0 then
  return redis.error_reply(failure)
end

-- include hand_on
-- A sentry that has a job is one no longer, so that work goes round. Where no other worker sleeps it stays, as long as
-- it has a place for the next job.
local crew, is_sentry, left = ARGV[11], ARGV[12] == '1', not dry
if crew ~= '' then
  left = left and has_jobs()
  local full = #jobs >= slots
  if left or (is_sentry and (full or #jobs > 0)) then
    local told = hand_on(crew, left, ARGV[13])
    if told and left and last and type(redis.pcall('LINDEX', last, 1)) == 'string' then
      -- Where each wakes two, many are awake soon.
      hand_on(crew, left, ARGV[13])
    elseif not told and is_sentry and full then
      redis.pcall('DEL', SENTRY .. crew)
    end
    is_sentry = is_sentry and not (told or full)
  end
end
return { 0, #held, stale, jobs, limited, left and 1 or 0, is_sentry and 1 or 0, executions }
