-- Return the whole seconds in a field of a job, as EXPIRE takes them, or nil if it holds no number above 0. More than 100
-- years become 100 years, since EXPIRE refuses larger numbers.
local function seconds_of(field)
  local number = tonumber(field or '')
  return number and number > 0 and math.min(math.ceil(number), 3155760000) or nil
end

-- Return the whole number in a counting field of ours; a text that is none counts as 0.
local function count_of(field)
  local number = tonumber(field or '')
  return number and number > 0 and math.min(math.floor(number), 1000000) or 0
end
