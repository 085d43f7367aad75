-- Tell whether a worker is registered and lists no execution any more. A list of another type counts as empty.
local function no_execution(worker)
  local count = redis.pcall('SCARD', worker .. ':executions')
  return (count == 0 or type(count) == 'table') and redis.pcall('EXISTS', worker) == 1
end
