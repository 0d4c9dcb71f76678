-- Is there something to wait for? ARGV: key. 'ready', 'loading' (somebody has the lease) or 'free'.
local state = find(ARGV[2])
if not state then return UNSETTLED end
if state ~= 'miss' then return { 'ready' } end
return { call('EXISTS', SPACE .. 'lease:' .. ARGV[2]) == 1 and 'loading' or 'free' }
