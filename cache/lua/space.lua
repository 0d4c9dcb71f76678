-- What every script of the cache begins with: the clocks of the bucket, and an item as it is kept.
--
-- KEYS: what all names of the bucket begin with. It holds their hash tag, so they are in one slot of a cluster.
-- ARGV: the run of the server; then what the script takes. Times are milliseconds by this server's clock.
--
-- In `clocks`: \1g generation, \1c the clock, \1s when something was last invalidated softly, \1f the floor (tags invalidated
-- before it are forgotten), \1v the version of the log that has been applied, a tag: when it was last invalidated,
-- \2 and a tag: when it was softly; \3 and a key: when it was put or (`d`) deleted by who knew, \1d the floor of those. All
-- "when" are readings of the clock, which counts invalidations and direct writes.
--
-- The generation begins with the run of the server: whatever came back from a disk, or from a replica that may have missed
-- the last invalidations, is of another generation and a miss. So is all that there was when `clocks` is evicted.
local call, format, floor, unpack_one = redis.call, string.format, math.floor, cmsgpack.unpack_one
local SPACE, RUN, CLOCKS = KEYS[1], ARGV[1], KEYS[1] .. 'clocks'
local LONGEST_LOAD = 300000  -- ms from a miss to the put that answers it
-- Of an item's head. BEGUN: when its load did. COUNTED: in which tally; false if there was no quota when it was written.
local GEN, AS_OF, CREATED, FRESH, ENDS, ETAG, KIND, TAGS, BEGUN, COUNTED = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10

local time = call('TIME')
local now = time[1] * 1000 + floor(time[2] / 1000)

-- Generation, clock, soft clock, floor, then those of the tags; nothing where they are another run's or gone.
local function read_clocks(tags)
  local known = call('HMGET', CLOCKS, '\1g', '\1c', '\1s', '\1f', unpack(tags))
  if known[1] and known[1]:sub(1, #RUN) == RUN then return known end
end

-- Head, all of it, and where the value begins.
local function load(key)
  local raw = call('GET', SPACE .. 'item:' .. key)
  if not raw then return nil, '', 0 end
  local at, head = unpack_one(raw)
  return head, raw, at
end

local function value_of(raw, at)
  return at == -1 and '' or raw:sub(at + 1)
end

-- Was one of these tags invalidated after this reading of the clock? Which.
local function invalidated(tags, known, as_of)
  if #tags == 0 then return nil end
  for n = 1, #tags do
    local at = known[4 + n]
    if at and tonumber(at) > as_of then return tags[n] end
  end
  return known[4] and tonumber(known[4]) > as_of and tags[1] or nil
end

local function invalidated_softly(tags, known, as_of)
  if #tags == 0 or not known[3] or tonumber(known[3]) <= as_of then return false end
  for n = 1, #tags do
    local at = call('HGET', CLOCKS, '\2' .. tags[n])
    if at and tonumber(at) > as_of then return true end
  end
  return false
end

-- 'hit', 'stale' or 'miss'.
local function state_of(head, known)
  if not head or head[GEN] ~= known[1] or head[ENDS] <= now or invalidated(head[TAGS], known, head[AS_OF]) then
    return 'miss'
  end
  if head[FRESH] <= now or invalidated_softly(head[TAGS], known, head[AS_OF]) then return 'stale' end
  return 'hit'
end

-- An item by its key: state, clocks, head, all of it, where the value begins. No state: the clocks are to be settled.
local function find(key)
  local head, raw, at = load(key)
  local known = read_clocks(head and head[TAGS] or {})
  if not known then return nil end
  return state_of(head, known), known, head, raw, at
end

-- A load of a key that began before this is refused. It is kept apart from the item, which may expire or be evicted before
-- the load is over.
local function write_down(key, at, mark)
  call('HSET', CLOCKS, '\3' .. key, format('%d%s', at, mark or ''))
  call('ZADD', SPACE .. 'writes', now, '\3' .. key)
end

local function place_in_time(known)
  return format('%s.%d.%s', known[2], now, known[1])
end

-- What values take, roughly, where the namespace has a quota: all together, and by the minute in which they expire. What
-- is evicted counts until then.
local USE, OVERHEAD = SPACE .. 'use', 120

-- What the tally is called since it began. A new one begins with a generation, or when it is evicted: what was counted in
-- an earlier one is not in it, and gives nothing back.
local function tally()
  local name = call('HGET', USE, 'name')
  if not name then
    name = format('%d', now)
    call('HSET', USE, 'name', name)
  end
  return name
end

local function count(key, head, raw, sign)
  if head[COUNTED] ~= tally() then return end
  local size = sign * (#key + #raw + OVERHEAD)
  call('HINCRBY', USE, format('%d', floor(head[ENDS] / 60000) + 1), size)
  call('HINCRBY', USE, 'all', size)
end

local function forget_expired()
  local minute, gone, fields = floor(now / 60000), 0, call('HGETALL', USE)
  for n = 1, #fields, 2 do
    local until_minute = tonumber(fields[n])
    if until_minute and until_minute <= minute then
      gone = gone + tonumber(fields[n + 1])
      call('HDEL', USE, fields[n])
    end
  end
  call('HINCRBY', USE, 'all', -gone)
  call('HSET', USE, 'looked', minute)
end

local function is_room(key, raw, quota)
  local size = #key + #raw + OVERHEAD
  local function fits() return tonumber(call('HGET', USE, 'all') or 0) + size <= quota end
  if fits() then return true end
  if tonumber(call('HGET', USE, 'looked') or 0) < floor(now / 60000) then forget_expired() end
  return fits()
end

-- Replace an item; false where there is no room. `quota` is empty where there is none.
local function write(key, head, value, quota)
  head[COUNTED] = quota ~= '' and tally()
  local raw = cmsgpack.pack(head) .. value
  if quota ~= '' then
    local old, old_raw = load(key)
    if old then count(key, old, old_raw, -1) end
    if not is_room(key, raw, tonumber(quota)) then
      if old then count(key, old, old_raw, 1) end
      return false
    end
    count(key, head, raw, 1)
  end
  call('SET', SPACE .. 'item:' .. key, raw, 'PX', format('%d', head[ENDS] - now))
  return true
end

local function answer(state, head, value)
  return { state, head[CREATED], head[FRESH], head[ENDS], head[ETAG], head[KIND], head[TAGS], value }
end

local UNSETTLED = { 'unsettled' }
