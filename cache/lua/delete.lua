-- ARGV: key, quota. What was loaded for it before now must not be stored after.
local key, quota = ARGV[2], ARGV[3]
local state, _, head, raw = find(key)
if not state then return UNSETTLED end
local at = call('HINCRBY', CLOCKS, '\1c', 1)
if head and quota ~= '' then count(key, head, raw, -1) end
call('DEL', SPACE .. 'item:' .. key, SPACE .. 'lease:' .. key)
write_down(key, at, 'd')
return { 'deleted', state == 'miss' and 0 or 1 }
