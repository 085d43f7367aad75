-- Refuse the call if its user may not run a later command, since a script cannot undo its writes. The loader inserts the
-- questions and the commands, see store/scripts.py. A server before 7.0 answers no questions, so each command is tried on
-- a text of ours, which none of them can change.
do
  local may, refused = redis.acl_check_cmd, {}
  if may and not (QUESTIONS) then
    for _, try in ipairs({ COMMANDS }) do
      refused[#refused + 1] = not may(try[1], try[2] or '') and try[1] or nil
    end
  elseif not may and not (NOW_AND_THEN and redis.call('EXISTS', NOW_AND_THEN) == 1) then
    local function is_refused(reply)
      local said = type(reply) == 'table' and reply.err or ''
      return string.find(said, 'ermission') or string.find(said, 'user executing') or string.find(said, 'ACL failure')
    end
    local text = redis.pcall('SET', RIGHTS, '1', 'PX', 1000)
    for _, try in ipairs({ COMMANDS }) do
      if try[1] == 'SET' and is_refused(text) then
        refused[#refused + 1] = 'SET'
      elseif text.ok then -- else there is no memory: nothing can be tried
        local reply = try[2] and redis.pcall(try[1], RIGHTS, unpack(try, 3))
          or redis.pcall(try[1], unpack(try, 3))
        refused[#refused + 1] = is_refused(reply) and try[1] or nil
      end
    end
    redis.pcall('DEL', RIGHTS)
    if NOW_AND_THEN and #refused == 0 then
      redis.pcall('SET', NOW_AND_THEN, '1', 'PX', 1000)
    end
  end
  if #refused > 0 then
    return redis.error_reply('NOPERM this user has no permissions for commands in a script: ' .. table.concat(refused, ', '))
  end
end
