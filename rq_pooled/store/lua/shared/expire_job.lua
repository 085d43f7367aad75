-- Have a job in a queue live for so many seconds, and what belongs to it, as RQ does.
local function expire_job(id, ttl)
  local job = JOB .. id
  redis.call('EXPIRE', job, ttl)
  redis.call('EXPIRE', job .. ':dependents', ttl)
  redis.call('EXPIRE', JOB .. ':' .. id .. ':dependencies', ttl)
end
