-- Wrap one of RQ's scripts for rate limits: its keys are checked first, since a script cannot undo its writes.
--
-- If a key has another type, nothing is done: such a set has no slots to give, and such a job keeps its slot. A waiting
-- entry whose job is gone is dropped, as in RQ. A job whose queue is no list waits on, and later jobs go first. At most
-- 1 000 jobs are let in at once.
local LET_IN = 1000
-- The keys are the sets of admitted and of waiting jobs, then for release_stale the job and its executions.
local KEY_TYPES = { 'zset', 'zset', 'hash', 'zset' }
local function guarded(script)
  return function(keys, arguments)
    -- rights first
    local allowed, waiting, most = keys[1], keys[2], tonumber(arguments[1])
    for i, key in ipairs(keys) do
      local found = redis.call('TYPE', key).ok
      if found ~= KEY_TYPES[i] and found ~= 'none' then
        redis.log(redis.LOG_WARNING, 'rq_pooled: ' .. key .. ' is a ' .. found .. ', no ' .. KEY_TYPES[i] .. ': left alone')
        return {}
      end
    end
    if not most or most ~= most then
      redis.log(redis.LOG_WARNING, 'rq_pooled: the concurrency of ' .. allowed .. ' is no number: nothing is let in')
      most = 0
    end
    local taken = redis.call('ZCARD', allowed)
    if arguments[6] and redis.call('ZSCORE', allowed, arguments[6]) then
      taken = taken - 1
    end
    local found, at, aside = 0, 0, {}
    while taken + found < most and found < LET_IN and at < 2 * LET_IN do
      local page = math.min(100, math.ceil(most - taken - found))
      local entries = redis.call('ZRANGE', waiting, at, at + page - 1, 'WITHSCORES')
      if #entries == 0 then
        break
      end
      for i = 1, #entries, 2 do
        local fields = redis.pcall('HMGET', JOB .. entries[i], 'origin', 'status') -- an error: no job
        if not fields[1] or fields[2] ~= 'rate_limited' then
          aside[#aside + 1] = { entries[i] }
        else
          local list = redis.call('TYPE', QUEUE .. fields[1]).ok
          if list == 'list' or list == 'none' then
            found = found + 1
          else
            aside[#aside + 1] = { entries[i], entries[i + 1] }
          end
        end
      end
      at = at + page
    end
    for _, entry in ipairs(aside) do
      redis.call('ZREM', waiting, entry[1])
    end
    local words = { unpack(arguments) }
    words[1] = string.format('%.0f', taken + found)
    local run = script
    local reply = run(keys, words)
    for _, entry in ipairs(aside) do
      if entry[2] then
        redis.call('ZADD', waiting, entry[2], entry[1])
      end
    end
    return reply
  end
end
