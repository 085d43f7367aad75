-- Give back a lock if the caller still holds it.
--
-- KEYS[1]     the lock
-- ARGV[1]     its value while it is ours
-- returns     1 if it was ours, else 0
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
