-- Remove one page of executions that are half deleted, or whose job is gone: the first make Job.delete raise.
--
-- KEYS        none: SCAN finds them
-- ARGV[1]     cursor of SCAN, 0 at first       ARGV[2]  about how many keys to look at
-- ARGV[3]     the caller, of whom one is enough  ARGV[4]  seconds for which it keeps the others away
-- returns     { next cursor, 0 at the end, -1 where another is at it, number of executions removed }
redis.call('DEL', NONE)
-- rights first
-- include is_alone
if not is_alone(ARGV[3], ARGV[4]) then
  return { '-1', 0 }
end
local reply, removed = redis.call('SCAN', ARGV[1], 'MATCH', EXECUTION_PATTERN, 'COUNT', ARGV[2]), 0

-- A claim that stands is left alone in any case, because a worker holds it.
local function is_claimed(id, execution)
  local origin = redis.pcall('HGET', JOB .. id, 'origin')
  local wip = type(origin) == 'string' and redis.pcall('ZSCORE', WIP .. origin, id .. ':' .. execution)
  return type(wip) == 'string'
end

for _, key in ipairs(reply[2]) do
  local id, execution
  if string.sub(key, 1, #EXECUTION) == EXECUTION then
    id, execution = string.match(string.sub(key, #EXECUTION + 1), '^(.*):([^:]*)$')
  end
  if id then
    local fields = redis.pcall('HMGET', key, 'id', 'created_at')
    local half = fields.err or not (fields[1] and fields[2])
    local orphan = redis.pcall('EXISTS', JOB .. id) == 0
    if (half or orphan) and not is_claimed(id, execution) then
      redis.call('DEL', key)
      redis.pcall('ZREM', EXECUTIONS .. id, execution)
      removed = removed + 1
    end
  elseif string.sub(key, 1, #EXECUTIONS) == EXECUTIONS then
    id = string.sub(key, #EXECUTIONS + 1)
    local listed = redis.pcall('ZRANGE', key, 0, 99)
    for _, one in ipairs(listed.err and {} or listed) do
      if redis.call('EXISTS', EXECUTION .. id .. ':' .. one) == 0 and not is_claimed(id, one) then
        removed = removed + redis.call('ZREM', key, one)
      end
    end
  end
end
return { reply[1], removed }
