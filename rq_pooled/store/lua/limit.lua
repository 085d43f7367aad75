-- Change the limit of a queue, and wake the workers that wait because of the old one.
--
-- KEYS[1]     rq_pooled:limits: queue -> the limit in force, led by who set it: code or operator
-- KEYS[2]     rq_pooled:limits:code: queue -> the limit that code declares, kept while an operator's is in force
-- ARGV[1]     queue name                       ARGV[2]  code | operator | clear
-- ARGV[3]     the limit: starts, microseconds, jobs that may run at once; 0 for none of them
-- returns     the limit in force now, or nothing

-- rights first
-- include fits
for _, key in ipairs(KEYS) do
  if not fits(key, 'hash') then
    -- The key is ours, and its limits were lost when it was overwritten.
    redis.call('DEL', key)
  end
end
local queue, who, limit = ARGV[1], ARGV[2], ARGV[3]
local before = redis.call('HGET', KEYS[1], queue)
-- Any other text, including numbers that queue/limits.py cannot read, is no limit, and is replaced.
local operators = before and #before <= 65 and string.match(before, '^operator %d+ %d+ %d+$')
local after = before
if who == 'code' then
  redis.call('HSET', KEYS[2], queue, limit)
  if not operators then
    after = 'code ' .. limit
  end
elseif who == 'operator' then
  after = 'operator ' .. limit
else
  local declared = operators and redis.call('HGET', KEYS[2], queue)
  after = declared and 'code ' .. declared
  if not declared then
    redis.call('HDEL', KEYS[2], queue)
  end
end
if after ~= before then
  if after then
    redis.call('HSET', KEYS[1], queue, after)
  else
    redis.call('HDEL', KEYS[1], queue)
    redis.call('DEL', STARTS .. queue)
  end
  redis.call('DEL', FULL .. queue, LIMITED .. queue)
end
return after
