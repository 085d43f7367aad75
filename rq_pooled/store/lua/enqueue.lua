-- Enqueue jobs if no condition refuses them: all of them or none, in one step.
--
-- KEYS[1]     queue (rq:queue:<name>)
-- ARGV[1]     jobs that may wait in the queue with these, -1 for any number
-- ARGV[2]     1: replace a job that has the same id, 0: refuse
-- ARGV[3]     spent-once key or ''             ARGV[4]  key of the call's function and arguments or ''
-- ARGV[5]     life of the latter, milliseconds
-- ARGV[6]     now, as RQ formats a date, for jobs that have a limit on how many run at once (RQ 3)
-- ARGV[7..]   per job: id, L or R (front or back), ttl in seconds or -1, number of words, field, value ..., and the key of
--             its limit or '', how many jobs that lets in
-- returns     { 'ok', status of each job ... } | { 'exists', id } | { 'spent', id that spent the key } | { 'unique', id that is queued or running }
--             | { 'full', jobs in the queue }

-- These are the rights to commands after the first write; a web process may have few others.
-- rights first of EXPIRE HGET HSET LPUSH RPUSH
local queue, most, replace = KEYS[1], tonumber(ARGV[1]), ARGV[2] == '1'
local once, unique, now = ARGV[3], ARGV[4], ARGV[6]

-- RQ limits
-- include numbers
-- include fits
-- include pass_limit
-- include expire_job
-- include forget_older

local life = math.floor(math.min(math.max(1, tonumber(ARGV[5]) or 1), 3155760000000))

-- Jobs that wait for their limits count as jobs in the queue.
local jobs, at, limits, waiting = {}, 7, {}, 0
if not fits(queue, 'list') then
  return redis.error_reply('WRONGTYPE ' .. queue .. ' is no list')
end
while at <= #ARGV do
  jobs[#jobs + 1] = at
  local job = JOB .. ARGV[at]
  if not replace and redis.call('EXISTS', job) == 1 then
    return { 'exists', ARGV[at] }
  elseif not fits(job, 'hash') then
    return redis.error_reply('WRONGTYPE ' .. job .. ' is no hash')
  end
  at = at + 4 + tonumber(ARGV[at + 3])
  local limit = RATE_LIMIT .. ARGV[at]
  if ARGV[at] ~= '' and not limits[limit] then
    -- rights first of HSET SADD ZADD
    if not is_limit(limit) then
      return redis.error_reply('WRONGTYPE ' .. limit .. ', or a key that belongs to it, is not what RQ makes it')
    end
    limits[limit] = true
    waiting = waiting + redis.call('ZCARD', limit .. ':rate_limited')
  end
  at = at + 2
end

if once ~= '' then
  local spender = redis.pcall('GET', once)
  if type(spender) == 'table' then
    return redis.error_reply('WRONGTYPE ' .. once .. ' is no text')
  elseif spender then
    return { 'spent', spender }
  end
end
if unique ~= '' then
  -- rights first of SET
  -- The key names the job, and the job's own state decides whether the key still counts, so any end of it frees the key.
  -- The key has the job's time of creation, because a later job with the same id is another call.
  local born, holder = string.match(fits(unique, 'string') and redis.call('GET', unique) or '', '^(%S+) (.+)$')
  local now = holder and redis.pcall('HMGET', JOB .. holder, 'status', 'created_at') or {}
  local status = now[2] == born and now[1]
  if status == 'queued' or status == 'started' or status == 'scheduled' or status == 'deferred'
    or status == 'rate_limited' or status == 'ready_to_enqueue' then
    return { 'unique', holder }
  end
end
if most >= 0 then
  local length = redis.call('LLEN', queue) + waiting
  if length + #jobs > most then
    return { 'full', tostring(length) }
  end
end

local time = redis.call('TIME')
local clock, statuses = time[1] + time[2] / 1000000, { 'ok' }
for _, first in ipairs(jobs) do
  local id, side, words = ARGV[first], ARGV[first + 1], tonumber(ARGV[first + 3])
  local ttl = seconds_of(ARGV[first + 2])
  local job = JOB .. id
  if replace then
    forget_if_signed(job, first + 4, first + 3 + words)
  end
  redis.call('HSET', job, unpack(ARGV, first + 4, first + 3 + words))
  if ttl then
    expire_job(id, ttl)
  end
  local last = first + 3 + words
  if not pass_limit(id, ARGV[last + 1], ARGV[last + 2], side == 'L', clock, now) then
    redis.call(side == 'L' and 'LPUSH' or 'RPUSH', queue, id)
  end
end
for _, first in ipairs(jobs) do
  statuses[#statuses + 1] = redis.call('HGET', JOB .. ARGV[first], 'status') or ''
end
if unique ~= '' then
  local id = ARGV[jobs[1]]
  redis.call('SET', unique, (redis.call('HGET', JOB .. id, 'created_at') or '-') .. ' ' .. id, 'PX', life)
end
return statuses
