-- Forget tags that were invalidated so long ago that nothing older can be left, and the oldest of too many: what is older
-- than those is then a miss. ARGV: ms that an item lives at most, how many tags may stay, how many to look at.
local AGES, most, limit = SPACE .. 'ages', tonumber(ARGV[3]), tonumber(ARGV[4])
local known = read_clocks({})
if not known then return { 0 } end
local old = call('ZRANGEBYSCORE', AGES, '-inf', format('%d', now - tonumber(ARGV[2])), 'LIMIT', 0, limit)
local above = math.min(limit - #old, call('ZCARD', AGES) - #old - most)
if above > 0 then
  local lowest = tonumber(known[4] or 0)
  for _, tag in ipairs(call('ZRANGE', AGES, #old, #old + above - 1)) do
    lowest = math.max(lowest, tonumber(call('HGET', CLOCKS, tag) or 0))
    old[#old + 1] = tag
  end
  call('HSET', CLOCKS, '\1f', lowest)
end
for _, tag in ipairs(old) do
  call('HDEL', CLOCKS, tag)
  call('ZREM', AGES, tag)
end
return { #old }
