-- Tell whether an entry of a registry is a job of its queue. One that failed there and was enqueued in another queue since
-- is the other's: who may act on the first may not on it.
local function is_of(registry, origin)
  return not origin or origin == '' or registry == FAILED .. origin or registry == DEAD .. origin
end
