-- Keep RQ's clean-up from claims that have a lease of ours: their jobs go back to their queues (stalled.lua), while RQ
-- would fail them. This is done once per claim; if no worker of ours lives on, RQ's rule applies.
--
-- KEYS[1..n]  queues (rq:queue:<name>) whose started registries are about to be cleaned
-- ARGV[1]     abandon after, seconds
-- returns     number of claims
redis.call('DEL', NONE)
-- rights first

local abandon_after = tonumber(ARGV[1])
local clock = tonumber(redis.call('TIME')[1])
-- RQ's clean-up uses the clock of the worker that runs it.
local SKEW = 60
local MAX_CLAIMS = 10000
local postponed = 0
for _, key in ipairs(KEYS) do
  local queue = string.sub(key, #QUEUE + 1)
  local wip = WIP .. queue
  local over = redis.pcall('ZRANGEBYSCORE', wip, 0, clock + SKEW, 'WITHSCORES', 'LIMIT', 0, MAX_CLAIMS)
  for i = 1, #over, 2 do
    local lease = redis.pcall('ZSCORE', LEASES .. queue, over[i])
    lease = type(lease) == 'string' and tonumber(lease)
    -- A horizon that is later than a claim or a heartbeat sets it has been postponed before.
    if lease and tonumber(over[i + 1]) <= lease + abandon_after then
      redis.call('ZADD', wip, 'XX', clock + SKEW + abandon_after, over[i])
      postponed = postponed + 1
    end
  end
end
return postponed
