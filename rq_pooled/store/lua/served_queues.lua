-- Name the queues that registered workers serve. Changes nothing.
--
-- KEYS        none
-- ARGV[1]     workers to look at
-- returns     for each of them that is there, its queues with commas between them
local served = {}
for _, worker in ipairs(redis.pcall('SRANDMEMBER', WORKERS, ARGV[1])) do
  local names = redis.pcall('HGET', worker, 'queues')
  if type(names) == 'string' then
    served[#served + 1] = names
  end
end
return served
