-- Tell whether a job is there: its hash has data. A key of that name that is no hash is no job; asking it is an error.
local function has_job(job)
  return redis.pcall('HEXISTS', job, 'data') == 1
end
