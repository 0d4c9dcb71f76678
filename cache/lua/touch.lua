-- ARGV: key, quota, ttl and stale ms. What is valid now is valid from now on, as if it had just been loaded; what was invalidated
-- softly stays stale.
local key, quota, ttl, stale = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local state, known, head, raw, at = find(key)
if not state then return UNSETTLED end
if state == 'miss' then return { 'miss', place_in_time(known) } end
if not invalidated_softly(head[TAGS], known, head[AS_OF]) then head[AS_OF] = tonumber(known[2]) end
head[FRESH], head[ENDS] = now + ttl, now + ttl + stale
if not write(key, head, value_of(raw, at), quota) then return { 'full' } end
return { 'touched', head[FRESH], head[ETAG] }
