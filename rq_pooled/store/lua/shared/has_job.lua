-- Tell whether a job exists: its hash has data. A key of another type is no job; reading it is an error.
local function has_job(job)
  return redis.pcall('HEXISTS', job, 'data') == 1
end
