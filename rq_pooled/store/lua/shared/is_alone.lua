-- Tell whether no other looks for ghosts, and keep the others away for so many seconds.
local function is_alone(caller, life)
  local owner = redis.call('GET', 'rq_pooled:lock:ghosts')
  if owner and owner ~= caller then
    return false
  end
  redis.call('SET', 'rq_pooled:lock:ghosts', caller, 'EX', life)
  return true
end
