-- Try the writes that follow on a key of ours. A right that was withdrawn is refused here, while nothing is half done:
-- behind the first write the jobs that have left one list would stand in no other.
for _, try in ipairs({ { 'LPUSH', '1' }, { 'ZADD', '1', '1' }, { 'ZREM', '1' }, { 'HSET', '1', '1' }, { 'HGET', '1' },
  { 'HDEL', '1' }, { 'EXPIRE', '1' } }) do
  redis.call('DEL', 'rq_pooled:stats:rights')
  local reply = redis.pcall(try[1], 'rq_pooled:stats:rights', unpack(try, 2))
  redis.call('DEL', 'rq_pooled:stats:rights')
  if type(reply) == 'table' and reply.err then
    return redis.error_reply(reply.err)
  end
end
