-- Note the number of the server's clients, and of connections of each role that our processes have published, unless
-- another worker did so a moment ago. All workers share one list of an hour.
--
-- KEYS[1]     list of samples, newest first: JSON [server time, clients, most clients or 0, {role: connections}]
-- ARGV[1]     clients      ARGV[2]  most clients, 0 if unknown
-- ARGV[3]     seconds within which another sample serves as well
-- returns     1 if noted

-- rights first
local time = redis.call('TIME')
local clock = tonumber(time[1]) + tonumber(time[2]) / 1000000
local newest = redis.call('LINDEX', KEYS[1], 0)
-- A text that is no sample is ignored, as is one from the future.
local known, sample = pcall(cjson.decode, newest or '')
local noted = known and type(sample) == 'table' and tonumber(sample[1])
if noted and math.abs(clock - noted) < tonumber(ARGV[3]) then
  return 0
end
local roles = {}
for _, key in ipairs(redis.call('ZRANGE', STATS, 0, 499)) do
  local read, held = pcall(cjson.decode, redis.pcall('HGET', key, 'connections') or '{}')
  for role, count in pairs(read and type(held) == 'table' and held or {}) do
    roles[role] = (roles[role] or 0) + (tonumber(count) or 0)
  end
end
redis.call('LPUSH', KEYS[1],
  string.format('[%.3f,%d,%d,%s]', clock, tonumber(ARGV[1]), tonumber(ARGV[2]), cjson.encode(roles)))
redis.call('LTRIM', KEYS[1], 0, math.ceil(3600 / math.max(1, tonumber(ARGV[3]))))
redis.call('EXPIRE', KEYS[1], 3600)
return 1
