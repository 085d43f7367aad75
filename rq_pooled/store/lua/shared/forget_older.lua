-- What the producer of a signed job decides, see signing/job.py, and what RQ writes of meta and retries.
local PRODUCED = {
  'success_callback_name', 'failure_callback_name', 'stopped_callback_name', 'success_callback_timeout',
  'failure_callback_timeout', 'stopped_callback_timeout', 'webhooks', 'timeout', 'retry_intervals', 'repeat_intervals',
  'rq_pooled:retry', 'dependency_ids', 'dependency_id', 'allow_dependency_failures', 'created_at', 'meta',
  'retries_left', 'repeats_left',
}
-- Have the hash of an older job forget that: a job with its id which does not write one of them would be taken for
-- altered. Its own hash keeps them, since RQ's code does not write all of them again. A user who may not run HDEL
-- enqueues nevertheless.
local function forget_older(job, created_at)
  if redis.pcall('HGET', job, 'created_at') ~= created_at then
    redis.pcall('HDEL', job, unpack(PRODUCED))
  end
end
-- Do so for a job whose fields and values are ARGV[first..last], if it is signed.
local function forget_if_signed(job, first, last)
  local signed, created_at = false, nil
  for at = first, last, 2 do
    signed = signed or ARGV[at] == 'rq_pooled:signature'
    created_at = ARGV[at] == 'created_at' and ARGV[at + 1] or created_at
  end
  if signed then
    forget_older(job, created_at)
  end
end
