-- Take or renew the lock of the search for ghosts for so many seconds; tell whether no other caller held it.
local function is_alone(caller, life)
  local owner = redis.call('GET', GHOSTS_LOCK)
  if owner and owner ~= caller then
    return false
  end
  redis.call('SET', GHOSTS_LOCK, caller, 'EX', life)
  return true
end
