-- Tell whether no other looks for ghosts, and keep the others away for so many seconds.
local function is_alone(caller, life)
  local owner = redis.call('GET', GHOSTS_LOCK)
  if owner and owner ~= caller then
    return false
  end
  redis.call('SET', GHOSTS_LOCK, caller, 'EX', life)
  return true
end
