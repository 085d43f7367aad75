-- Clean one page of RQ's groups, as Group.clean_registries does with all: remove ids whose job is gone, and groups
-- without ids. What RQ cannot read is removed, too.
--
-- KEYS        none: they follow from the names of the groups
-- returns     { 1 if the round is complete, number of groups and ids removed }
--
-- Where a page ended stands in a hash, so that the next caller goes on there: the cursor in the set of groups, and those
-- in the groups that are too large for the page in which they were found.
redis.call('DEL', NONE)
-- rights first
-- include is_text
-- include fits

local PAGE, SMALL, LARGE_PAGE, LIFE, MOST_NOTES = 50, 100, 1000, 86400, 1000
local removed = 0

-- Drop a group that is empty, or that RQ cannot read, and tell whether it was.
local function drop_if_empty(name)
  local size = redis.pcall('SCARD', GROUP .. name)
  if size ~= 0 and type(size) == 'number' and is_text(name) then
    return false
  end
  removed = removed + redis.call('SREM', GROUPS, name)
  return true
end

-- Clean one page of a group; tell whether it was the last one, else note the cursor of the next.
local function clean(name, cursor, count)
  local key = GROUP .. name
  local reply = redis.pcall('SSCAN', key, cursor, 'COUNT', count)
  for _, id in ipairs(reply.err and {} or reply[2]) do
    if redis.call('EXISTS', JOB .. id) == 0 or not is_text(id) then
      removed = removed + redis.call('SREM', key, id)
    end
  end
  local is_last = reply.err or reply[1] == '0'
  if is_last then
    redis.call('HDEL', CLEANING, 'group:' .. name)
    drop_if_empty(name)
  else
    redis.call('HSET', CLEANING, 'group:' .. name, reply[1])
  end
  return is_last
end

local count = fits(CLEANING, 'hash') and redis.call('HLEN', CLEANING) or MOST_NOTES
if not fits(GROUPS, 'set') or count >= MOST_NOTES then
  -- None of these was written here.
  redis.call('DEL', CLEANING)
  return { 1, 0 }
end
local cursor, noted, large = '0', 0, nil
local notes = redis.call('HGETALL', CLEANING)
for i = 1, #notes, 2 do
  local name = string.match(notes[i], '^group:(.*)$')
  if name then
    large, noted = { name, notes[i + 1] }, noted + 1
  elseif notes[i] == 'groups' then
    cursor, noted = notes[i + 1], noted + 1
  end
end

if large then
  local is_last = clean(large[1], large[2], LARGE_PAGE)
  return { is_last and noted == 1 and 1 or 0, removed }
end

local reply = redis.pcall('SSCAN', GROUPS, cursor, 'COUNT', PAGE)
if reply.err then
  redis.call('DEL', CLEANING)
  return { 1, 0 }
end
local left = false
for _, name in ipairs(reply[2]) do
  -- Even a small group may take several pages, where its table is large still.
  if not drop_if_empty(name) and not clean(name, 0, SMALL) then
    left = true
  end
end
if reply[1] ~= '0' then
  redis.call('HSET', CLEANING, 'groups', reply[1])
  left = true
else
  redis.call('HDEL', CLEANING, 'groups')
end
if left then
  redis.call('EXPIRE', CLEANING, LIFE)
end
return { left and 0 or 1, removed }
