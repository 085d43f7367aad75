-- Clean one page of RQ's groups, as Group.clean_registries does with all: remove ids whose job is gone, and groups
-- without ids. What RQ cannot read is removed, too.
--
-- KEYS        none: they follow from the names of the groups
-- ARGV[1]     cursor in the set of groups, 0 at first
-- ARGV[2]     if given, the name of one group, in which the cursor is
-- returns     { next cursor, 0 at the end, names of groups that take pages of their own }
redis.call('DEL', NONE)
-- rights first
-- include is_text

local PAGE, SMALL, LARGE_PAGE = 50, 100, 1000

-- Drop a group that is empty, or that RQ cannot read, and tell whether it was.
local function drop_if_empty(name)
  local size = redis.pcall('SCARD', GROUP .. name)
  if size ~= 0 and type(size) == 'number' and is_text(name) then
    return false
  end
  redis.call('SREM', GROUPS, name)
  return true
end

-- Clean one page of a group, and return the cursor of the next.
local function clean(name, cursor, count)
  local reply = redis.pcall('SSCAN', GROUP .. name, cursor, 'COUNT', count)
  for _, id in ipairs(reply.err and {} or reply[2]) do
    if redis.call('EXISTS', JOB .. id) == 0 or not is_text(id) then
      redis.call('SREM', GROUP .. name, id)
    end
  end
  drop_if_empty(name)
  return reply.err and '0' or reply[1]
end

if ARGV[2] then
  return { clean(ARGV[2], ARGV[1], LARGE_PAGE) }
end
local reply = redis.pcall('SSCAN', GROUPS, ARGV[1], 'COUNT', PAGE)
if reply.err then
  return { '0' }
end
local answer = { reply[1] }
for _, name in ipairs(reply[2]) do
  -- Even a small group may take several pages, where its table is large still.
  if not drop_if_empty(name) and clean(name, 0, SMALL) ~= '0' then
    table.insert(answer, name)
  end
end
return answer
