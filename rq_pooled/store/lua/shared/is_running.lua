-- Tell whether any execution of the job stands in the started registry of the queue. The list of executions alone says
-- nothing: that of a worker which died outlives RQ's clean-up by a minute.
local function is_running(id, queue)
  for _, execution in ipairs(redis.pcall('ZRANGE', EXECUTIONS .. id, 0, 9)) do
    if type(redis.pcall('ZSCORE', WIP .. queue, id .. ':' .. execution)) == 'string' then
      return true
    end
  end
  return false
end
