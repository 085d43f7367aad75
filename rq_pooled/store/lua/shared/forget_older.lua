-- What the producer of a signed job decides, see signing/job.py, and what RQ writes of meta and retries.
local PRODUCED = {
  'success_callback_name', 'failure_callback_name', 'stopped_callback_name', 'success_callback_timeout',
  'failure_callback_timeout', 'stopped_callback_timeout', 'webhooks', 'timeout', 'retry_intervals', 'repeat_intervals',
  'rq_pooled:retry', 'dependency_ids', 'dependency_id', 'allow_dependency_failures', 'created_at', 'meta',
  'retries_left', 'repeats_left',
}
-- Have an older job's hash forget that: a job with its id which does not write one of them would be taken for altered.
-- A user who may not run HDEL enqueues nevertheless.
local function forget_older(job)
  redis.pcall('HDEL', job, unpack(PRODUCED))
end
-- Tell whether a job is signed whose fields and values are ARGV[first..last].
local function is_signed(first, last)
  for at = first, last, 2 do
    if ARGV[at] == 'rq_pooled:signature' then
      return true
    end
  end
  return false
end
