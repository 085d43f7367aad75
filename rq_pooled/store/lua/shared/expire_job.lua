-- Let a queued job and the keys that belong to it live for so many seconds, as RQ does.
local function expire_job(id, ttl)
  local job = JOB .. id
  redis.call('EXPIRE', job, ttl)
  redis.call('EXPIRE', job .. ':dependents', ttl)
  redis.call('EXPIRE', JOB .. ':' .. id .. ':dependencies', ttl)
end
