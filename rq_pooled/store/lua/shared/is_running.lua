-- Tell whether any execution of the job stands in the queue's started registry. The list of executions alone does not
-- tell, because that of a dead worker outlives RQ's clean-up by a minute.
local function is_running(id, queue)
  for _, execution in ipairs(redis.pcall('ZRANGE', EXECUTIONS .. id, 0, 9)) do
    if type(redis.pcall('ZSCORE', WIP .. queue, id .. ':' .. execution)) == 'string' then
      return true
    end
  end
  return false
end
