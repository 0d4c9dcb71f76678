-- Forget what matters no more: tags that were invalidated so long ago that nothing older can be left, and writes before
-- which no load can have begun; and of too many the oldest. Then what is older than those is a miss, or refused.
-- ARGV: ms that an item lives at most, how many of each may stay, how many to look at.
local most, limit = tonumber(ARGV[3]), tonumber(ARGV[4])
if not read_clocks({}) then return { 0 } end

local function forget(names, life, floor_of_it)
  local old = call('ZRANGEBYSCORE', names, '-inf', format('%d', now - life), 'LIMIT', 0, limit)
  local above = math.min(limit - #old, call('ZCARD', names) - #old - most)
  if above > 0 then
    local lowest = tonumber(call('HGET', CLOCKS, floor_of_it) or 0)
    for _, name in ipairs(call('ZRANGE', names, #old, #old + above - 1)) do
      lowest = math.max(lowest, tonumber((call('HGET', CLOCKS, name) or '0'):match('^%d+')))
      old[#old + 1] = name
    end
    call('HSET', CLOCKS, floor_of_it, lowest)
  end
  for _, name in ipairs(old) do
    call('HDEL', CLOCKS, name)
    call('ZREM', names, name)
  end
  return #old
end

local AGES, WRITES = SPACE .. 'ages', SPACE .. 'writes'
local gone = forget(AGES, tonumber(ARGV[2]), '\1f') + forget(WRITES, LONGEST_LOAD, '\1d')
-- One of the two was evicted, and what it named would stay for good: begin anew.
if call('HLEN', CLOCKS) > call('ZCARD', AGES) + call('ZCARD', WRITES) + 6 then call('UNLINK', CLOCKS) end
return { gone }
