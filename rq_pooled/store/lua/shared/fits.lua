-- Tell whether a key can take a write of this type; a missing key can. A key of another type makes the command fail,
-- which would end the script between two writes that belong together.
local types = {}
local function fits(key, wanted)
  types[key] = types[key] or redis.call('TYPE', key).ok
  return types[key] == wanted or types[key] == 'none'
end
