do -- before anything is written, since a script cannot undo
  -- This key never exists, so asking for it fails, before any write, if the slot is elsewhere or being moved.
  local reply = redis.pcall('EXISTS', NONE)
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'non local key') then
    return redis.error_reply('TRYAGAIN the slot of ' .. NONE .. ' is not served here now')
  end
end
