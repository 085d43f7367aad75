-- Run reads, and digest each reply, by which a later change can be recognised.
--
-- KEYS        none: they are in the commands
-- ARGV        per command: number of words, word ...
-- returns     per command: { digest (see shared/digest.lua), reply, { field that was left out of it ... }, if any }
--
-- HGETALL of a job's hash leaves large fields out. Its digest guards nothing, because the job's status is guarded.

-- include digest
-- include read_job

local results, at = {}, 1
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  local reply, left_out
  if words == 2 and ARGV[at + 1] == 'HGETALL' and string.sub(ARGV[at + 2], 1, #JOB) == JOB then
    reply, left_out = read_job(ARGV[at + 2])
    if reply.err then
      return reply
    elseif not left_out then
      reply, left_out = lighten(reply)
    end
  else
    reply = redis.call(unpack(ARGV, at + 1, at + words))
  end
  results[#results + 1] = { digest(reply, ARGV[at + 1], ARGV[at + 3]), reply, left_out }
  at = at + 1 + words
end
return results
