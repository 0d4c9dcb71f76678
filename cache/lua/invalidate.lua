-- ARGV: version in the log, hard or soft, tags. Doing it again is safe: it can only make more of it invalid.
local version, mode = tonumber(ARGV[2]), ARGV[3]
if not read_clocks({}) then return UNSETTLED end
local at = call('HINCRBY', CLOCKS, '\1c', 1)
local mark = mode == 'soft' and '\2' or ''
for n = 4, #ARGV do
  call('HSET', CLOCKS, mark .. ARGV[n], at)
  call('ZADD', SPACE .. 'ages', now, mark .. ARGV[n])
end
if mode == 'soft' then call('HSET', CLOCKS, '\1s', at) end
-- What was logged before it may still be missing.
if tonumber(call('HGET', CLOCKS, '\1v')) == version - 1 then call('HSET', CLOCKS, '\1v', version) end
return { 'applied' }
