-- Read what lists show of failed jobs: dates, description and error, and neither arguments nor what is too large.
--
-- KEYS        none
-- ARGV[1]     bytes of a description, and of an error in a job's hash, above which it is not read
-- ARGV[2]     bytes of a job's results in memory above which its newest is not read
-- ARGV[3..]   ids of jobs
-- returns     for each job { 1 if it exists, ended_at, enqueued_at, retries_left, description or its size, the error in
--             its newest result, or the memory of its results, the error in its hash, the beginning of its queue's name }
local most, memory = tonumber(ARGV[1]), tonumber(ARGV[2])
-- include has_job
local jobs = {}
for at = 3, #ARGV do
  local job, results = JOB .. ARGV[at], RESULTS .. ARGV[at]
  local fields = redis.pcall('HMGET', job, 'ended_at', 'enqueued_at', 'retries_left', 'origin')
  if fields.err then
    if not string.find(fields.err, 'WRONGTYPE') then
      return fields
    end
    jobs[#jobs + 1] = { 0, '', '', '', '', '', '', '' }
  else
    local function text(name)
      local size = redis.call('HSTRLEN', job, name)
      return size > most and size or redis.call('HGET', job, name) or ''
    end
    local used = redis.pcall('MEMORY', 'USAGE', results)
    local error = type(used) == 'number' and used > memory and used or ''
    local newest = error == '' and redis.pcall('XREVRANGE', results, '+', '-', 'COUNT', 1) or {}
    for i = 1, newest[1] and #newest[1][2] or 0, 2 do
      if newest[1][2][i] == 'exc_string' then
        error = newest[1][2][i + 1]
      end
    end
    local old = error == '' and text('exc_info') or ''
    jobs[#jobs + 1] = { has_job(job) and 1 or 0, fields[1] or '', fields[2] or '', fields[3] or '', text('description'),
      error, type(old) == 'string' and old or '', string.sub(fields[4] or '', 1, most) }
  end
end
return jobs
