-- Read the next entries of a registry of failed jobs, from where the last call stopped.
--
-- Entries stand by score, and many share one. So a place is a score, the number of its entries that were seen and still
-- exist, and the last of them. If that entry has moved, others were removed; then all with this score are read again,
-- since an entry may be seen twice, but must not be missed.
--
-- KEYS[1]     the registry                     KEYS[2]  lock of the sweep
-- ARGV[1]     owner of the lock, or '' to ignore it      ARGV[2]  life of the lock, seconds
-- ARGV[3]     score to go on from              ARGV[4]  entries with it that were seen and left
-- ARGV[5]     the last of these                ARGV[6]  entries at most
-- ARGV[7]     bytes to stop at                 ARGV[8]  1: with the job's data, unless it is larger than the bytes
--             Neither an error that is larger is returned, nor what is behind the beginning of a description.
-- returns     { 'ok' | 'lost' (the lock is not ours any more), the server's time, entries with the score that count as
--             seen, { { id, score, hash fields (data or nothing, status, ended_at, description, rq_pooled:requeues),
--             id of the newest result, its error } ... } }
local MAX_DESCRIPTION = 4096
-- include holds
-- include has_job
if not holds(KEYS[2], ARGV[1], ARGV[2]) then
  return { 'lost' }
end
local registry, seen, limit, budget = KEYS[1], tonumber(ARGV[4]), tonumber(ARGV[6]), tonumber(ARGV[7])
local start = 0
if ARGV[3] ~= '' then
  start = redis.call('ZCOUNT', registry, '-inf', '(' .. ARGV[3]) + seen
  if seen > 0 and redis.call('ZRANGE', registry, start - 1, start - 1)[1] ~= ARGV[5] then
    start, seen = start - seen, 0
  end
end
local entries, bytes = {}, 0
local found = redis.call('ZRANGE', registry, start, start + limit - 1, 'WITHSCORES')
for i = 1, #found, 2 do
  if bytes >= budget then
    break
  end
  local id = found[i]
  local job = JOB .. id
  local fields = redis.pcall('HMGET', job, 'status', 'ended_at', 'description', 'rq_pooled:requeues')
  if fields.err then
    -- The key exists, but holds no job.
    fields[1], fields[2], fields[3], fields[4] = false, false, false, false
  end
  local exists = has_job(job)
  local data = ''
  if exists and ARGV[8] == '1' and redis.call('HSTRLEN', job, 'data') <= budget then
    data = redis.call('HGET', job, 'data')
  end
  local result, text = '', ''
  local newest = exists and redis.pcall('XREVRANGE', RESULTS .. id, '+', '-', 'COUNT', 1) or {}
  if newest[1] then
    result = newest[1][1]
    for j = 1, #newest[1][2], 2 do
      if newest[1][2][j] == 'exc_string' then
        text = newest[1][2][j + 1]
      end
    end
  end
  -- RQ before 1.12 has no results; its errors stand in the hash.
  if exists and text == '' and redis.call('HSTRLEN', job, 'exc_info') <= budget then
    text = redis.call('HGET', job, 'exc_info') or ''
  end
  if #text > budget then
    text = string.format('an error of %d bytes, which is not read', #text)
  end
  fields[3] = string.sub(fields[3] or '', 1, MAX_DESCRIPTION)
  bytes = bytes + #id + #data + #text + #(fields[3] or '')
  entries[#entries + 1] = { id, found[i + 1], exists and 1 or 0, data, fields[1], fields[2], fields[3], fields[4],
    result, text }
end
local time = redis.call('TIME')
return { 'ok', time[1] .. '.' .. string.format('%06d', time[2]), seen, entries }
