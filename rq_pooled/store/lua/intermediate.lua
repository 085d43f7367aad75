-- Rescue ids from RQ's intermediate lists. A stock worker moves an id there, writes that the job has started, and
-- removes it, all within milliseconds. An id that stays is from a worker that died in between; RQ would fail its job.
--
-- KEYS[1..n]  queues (rq:queue:<name>) of the caller; other queues known to RQ are looked at, too
-- ARGV[1]     seconds after which an id was left
-- returns     { { job id, queue key, 1 if it went back to its queue, 0 if it was only removed } ... }
redis.call('DEL', NONE)
-- rights first

local age = tonumber(ARGV[1])
local time = redis.call('TIME')
local clock = tonumber(time[1]) + tonumber(time[2]) / 1000000
local SAMPLE, PAGE = 100, 100

local keys, known = {}, {}
local function add(key)
  if not known[key] then
    known[key] = true
    keys[#keys + 1] = key
  end
end
for _, key in ipairs(KEYS) do
  add(key)
end
for _, key in ipairs(redis.pcall('SRANDMEMBER', QUEUES, SAMPLE)) do
  add(key)
end

-- include fits

-- Tell whether an execution stands that must be left alone. The execution of a stock worker that has not begun the job
-- is dropped, because its worker died: it begins the job and removes the id from the list in one step.
local function is_running(id, queue, begun)
  local running = false
  for _, execution in ipairs(redis.pcall('ZRANGE', EXECUTIONS .. id, 0, 9)) do
    local member = id .. ':' .. execution
    if type(redis.pcall('ZSCORE', WIP .. queue, member)) == 'string' then
      if begun or redis.pcall('ZSCORE', LEASES .. queue, member) then
        running = true
      else
        redis.call('ZREM', WIP .. queue, member)
        redis.call('DEL', EXECUTION .. member)
        redis.call('ZREM', EXECUTIONS .. id, execution)
      end
    end
  end
  return running
end

local found = {}
for _, key in ipairs(keys) do
  local list, seen_key = key .. ':intermediate', INTERMEDIATE .. string.sub(key, #QUEUE + 1)
  local ids = fits(key, 'list') and fits(seen_key, 'zset') and redis.pcall('LRANGE', list, 0, PAGE - 1) or {} -- an error has no ids
  local here = {}
  for _, id in ipairs(ids) do
    here[id] = true
    local seen = tonumber(redis.call('ZSCORE', seen_key, id) or '')
    if not seen then
      redis.call('ZADD', seen_key, clock, id)
    elseif clock - seen >= age then
      local fields = redis.pcall('HMGET', JOB .. id, 'data', 'status', 'origin') -- an error: no job
      local waiting = fields[2] == 'queued' or fields[2] == 'started'
      local queue = fields[3] or string.sub(key, #QUEUE + 1)
      local rescue = fields[1] and waiting and not is_running(id, queue, fields[2] == 'started')
      -- A key of another type is no queue to which the job could go.
      rescue = rescue and type(redis.pcall('LLEN', key)) == 'number'
      redis.call('LREM', list, 1, id)
      redis.call('ZREM', seen_key, id)
      -- RQ notes the same in this key, for a day.
      redis.call('DEL', list .. ':first_seen:' .. id)
      if rescue then
        redis.call('HSET', JOB .. id, 'status', 'queued')
        redis.call('LPUSH', key, id)
      end
      found[#found + 1] = { id, key, rescue and 1 or 0 }
    end
  end
  -- An id that was removed in time must not count as left behind when it comes again.
  for _, id in ipairs(redis.pcall('ZRANGE', seen_key, 0, -1)) do
    if not here[id] then
      redis.call('ZREM', seen_key, id)
    end
  end
end
return found
