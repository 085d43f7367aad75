-- Enqueue jobs if nothing speaks against it: all of them or none, in one step.
--
-- KEYS[1]     queue (rq:queue:<name>)
-- ARGV[1]     jobs that may wait in the queue with these, -1 for any number
-- ARGV[2]     1: replace a job that has the same id, 0: refuse
-- ARGV[3]     spent-once key or ''             ARGV[4]  key of the call's function and arguments or ''
-- ARGV[5]     life of the latter, milliseconds
-- ARGV[6..]   per job: id, L or R (front or back), ttl in seconds or -1, number of words, field, value ...
-- returns     { 'ok' } | { 'exists', id } | { 'spent', id that spent the key } | { 'unique', id that is queued or running }
--             | { 'full', jobs in the queue }
local queue, most, replace = KEYS[1], tonumber(ARGV[1]), ARGV[2] == '1'
local once, unique, life = ARGV[3], ARGV[4], ARGV[5]

-- include numbers
-- include fits

local jobs, at = {}, 6
if not fits(queue, 'list') then
  return redis.error_reply('WRONGTYPE ' .. queue .. ' is no list')
end
while at <= #ARGV do
  jobs[#jobs + 1] = at
  local job = 'rq:job:' .. ARGV[at]
  if not replace and redis.call('EXISTS', job) == 1 then
    return { 'exists', ARGV[at] }
  elseif not fits(job, 'hash') then
    return redis.error_reply('WRONGTYPE ' .. job .. ' is no hash')
  end
  at = at + 4 + tonumber(ARGV[at + 3])
end

if once ~= '' then
  local spender = redis.call('GET', once)
  if spender then
    return { 'spent', spender }
  end
end
if unique ~= '' then
  -- The key says which job; whether it still counts says that job itself. So whatever ends it, by whomever, frees the key.
  -- With the time of its creation: a later job with the same id is another call.
  local born, holder = string.match(redis.call('GET', unique) or '', '^(%S+) (.+)$')
  local now = holder and redis.call('HMGET', 'rq:job:' .. holder, 'status', 'created_at') or {}
  local status = now[2] == born and now[1]
  if status == 'queued' or status == 'started' or status == 'scheduled' or status == 'deferred'
    or status == 'rate_limited' or status == 'ready_to_enqueue' then
    return { 'unique', holder }
  end
end
if most >= 0 then
  local length = redis.call('LLEN', queue)
  if length + #jobs > most then
    return { 'full', tostring(length) }
  end
end

for _, first in ipairs(jobs) do
  local id, side, words = ARGV[first], ARGV[first + 1], tonumber(ARGV[first + 3])
  local ttl = seconds_of(ARGV[first + 2])
  local job = 'rq:job:' .. id
  redis.call('HSET', job, unpack(ARGV, first + 4, first + 3 + words))
  if ttl then
    redis.call('EXPIRE', job, ttl)
    redis.call('EXPIRE', job .. ':dependents', ttl)
    redis.call('EXPIRE', 'rq:job::' .. id .. ':dependencies', ttl)
  end
  redis.call(side == 'L' and 'LPUSH' or 'RPUSH', queue, id)
end
if unique ~= '' then
  local id = ARGV[jobs[1]]
  redis.call('SET', unique, (redis.call('HGET', 'rq:job:' .. id, 'created_at') or '-') .. ' ' .. id, 'PX', life)
end
return { 'ok' }
