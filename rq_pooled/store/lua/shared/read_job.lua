-- A job's hash as it is sent to a worker. Large values are left out, since later replies on the connection would wait;
-- the horse reads them over another connection. Lengths are read before values.
local LARGE, LARGE_VALUE, AT_ONCE = 1048576, 65536, 5000

-- Fields that scripts and the parent read stay at any size.
local function stays(name, length)
  return length <= LARGE_VALUE or name == 'origin' or string.find(name, 'rq_pooled', 1, true) == 1
end

-- Take the large values out of a large hash, given flat; return the rest and the names of their fields.
local function lighten(raw)
  local light, left_out, size = {}, {}, 0
  for i = 2, #raw, 2 do
    size = size + #raw[i]
  end
  if size <= LARGE then
    return raw, nil
  end
  for i = 1, #raw, 2 do
    if stays(raw[i], #raw[i + 1]) then
      light[#light + 1], light[#light + 2] = raw[i], raw[i + 1]
    else
      left_out[#left_out + 1] = raw[i]
    end
  end
  return light, left_out
end

-- Return the hash of a job, flat, and the names of the fields that were left out, or nil if it is complete.
local function read_job(job)
  local length = redis.pcall('HSTRLEN', job, 'data')
  if type(length) ~= 'number' or length <= LARGE then
    return redis.pcall('HGETALL', job), nil
  end
  local light, left_out, wanted = {}, {}, {}
  local function read()
    for i, value in ipairs(#wanted > 0 and redis.call('HMGET', job, unpack(wanted)) or {}) do
      light[#light + 1], light[#light + 2] = wanted[i], value
    end
    wanted = {}
  end
  for _, name in ipairs(redis.call('HKEYS', job)) do
    if not stays(name, redis.call('HSTRLEN', job, name)) then
      left_out[#left_out + 1] = name
    else
      wanted[#wanted + 1] = name
      if #wanted == AT_ONCE then
        read()
      end
    end
  end
  read()
  return light, left_out
end
