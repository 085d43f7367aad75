do -- before anything is written, since a script cannot undo
  -- Of a slot that is elsewhere, or on its way there, this key has left: it never exists. All other keys follow it.
  local reply = redis.pcall('EXISTS', NONE)
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'non local key') then
    return redis.error_reply('TRYAGAIN the slot of ' .. NONE .. ' is not served here now')
  end
end
