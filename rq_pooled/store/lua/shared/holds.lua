-- Tell whether the caller still holds a lock, and renew it. A caller without a name needs no lock.
local function holds(lock, owner, life)
  if owner ~= '' and redis.call('GET', lock) ~= owner then
    return false
  elseif owner ~= '' then
    redis.call('EXPIRE', lock, life)
  end
  return true
end
