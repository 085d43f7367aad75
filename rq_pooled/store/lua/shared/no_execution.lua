-- Tell whether a worker is registered and lists no execution any more. A list that has become something else tells nothing.
local function no_execution(worker)
  local count = redis.pcall('SCARD', worker .. ':executions')
  return (count == 0 or type(count) == 'table') and redis.pcall('EXISTS', worker) == 1
end
