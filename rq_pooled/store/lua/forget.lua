-- Have the hash of an older job forget what a signed job with its id, which is saved next, may not write.
--
-- KEYS[1]     job (rq:job:<id>)
-- ARGV[1]     created_at of the job that is saved
-- returns     1 | 0: there is none of its id

-- include forget_older
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
forget_older(KEYS[1], ARGV[1])
return 1
