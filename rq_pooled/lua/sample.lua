-- Note how many clients the server has, unless somebody did a moment ago: one line for all workers, for an hour.
--
-- KEYS[1]     list of samples, newest first: JSON [server time, clients, most clients or 0]
-- ARGV[1]     clients      ARGV[2]  most clients, 0 if unknown
-- ARGV[3]     seconds within which another sample serves as well
-- returns     1 if noted
local time = redis.call('TIME')
local clock = tonumber(time[1]) + tonumber(time[2]) / 1000000
local newest = redis.call('LINDEX', KEYS[1], 0)
if newest and clock - cjson.decode(newest)[1] < tonumber(ARGV[3]) then
  return 0
end
redis.call('LPUSH', KEYS[1], string.format('[%.3f,%d,%d]', clock, tonumber(ARGV[1]), tonumber(ARGV[2])))
redis.call('LTRIM', KEYS[1], 0, math.ceil(3600 / math.max(1, tonumber(ARGV[3]))))
redis.call('EXPIRE', KEYS[1], 3600)
return 1
