-- Return the whole seconds that a field of a job says, as EXPIRE takes them, or nil if it says none. What is not a number
-- above 0 is none, and more than 100 years are 100 years, since EXPIRE refuses larger numbers.
local function seconds_of(field)
  local number = tonumber(field or '')
  return number and number > 0 and math.min(math.ceil(number), 3155760000) or nil
end

-- Return the whole number that a field of ours counts up; what is none counts as 0.
local function count_of(field)
  local number = tonumber(field or '')
  return number and number > 0 and math.min(math.floor(number), 1000000) or 0
end
