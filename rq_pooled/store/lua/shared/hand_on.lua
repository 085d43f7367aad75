-- Make the next sleeper of a crew its sentry for so many milliseconds, and tell it whether jobs wait; return
-- whether one was told. Those that nothing reaches any more are dropped, a bounded number of them.
local function hand_on(crew, work, life)
  for _ = 1, 16 do
    local channel = redis.pcall('ZPOPMIN', SLEEPERS .. crew)[1]
    if not channel then
      return false
    end
    local told = redis.pcall('PUBLISH', channel, '{"command": "' .. SENTRY_COMMAND .. '", "work": ' .. tostring(work) .. '}')
    if type(told) == 'number' and told > 0 then
      redis.pcall('SET', SENTRY .. crew, channel, 'PX', life)
      return true
    end
  end
  return false
end
