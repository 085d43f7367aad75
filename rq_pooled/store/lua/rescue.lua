-- Put queued jobs that stand in no list back into their queues: a stock worker that died after BLPOP lost their ids.
-- The script checks the caller's findings again, because nothing can move meanwhile.
--
-- KEYS        none: they follow from the ids
-- ARGV[1]     1: put back, 0: only tell
-- ARGV[2..]   per job: id, its enqueued_at as the caller has read it
-- returns     the ids that are (or would be) put back

-- rights first
-- include fits

local found = {}
for at = 2, #ARGV, 2 do
  local id, enqueued_at = ARGV[at], ARGV[at + 1]
  local job = JOB .. id
  local fields = redis.pcall('HMGET', job, 'data', 'status', 'origin', 'enqueued_at')
  if fields[1] and fields[2] == 'queued' and fields[3] and fields[4] == enqueued_at then
    local key = QUEUE .. fields[3]
    -- If one of these keys is no list, the answer is unknown.
    local listed = not fits(key, 'list') or not fits(key .. ':intermediate', 'list')
    listed = listed or redis.call('LPOS', key, id) or redis.call('LPOS', key .. ':intermediate', id)
    for _, execution in ipairs(redis.pcall('ZRANGE', EXECUTIONS .. id, 0, 9)) do
      listed = listed or redis.pcall('ZSCORE', WIP .. fields[3], id .. ':' .. execution)
    end
    if not listed then
      if ARGV[1] == '1' then
        redis.pcall('SADD', QUEUES, key)
        redis.call('RPUSH', key, id)
      end
      found[#found + 1] = id
    end
  end
end
return found
