-- ARGV: key, quota, as_of or lease, if_etag, only if absent (1), ttl and stale ms, etag, kind, value, tags.
local key, quota, as_of, if_etag, absent, ttl, stale, etag, kind, value = unpack(ARGV, 2, 11)
local tags = { unpack(ARGV, 12) }
local known = read_clocks(tags)
if not known then return UNSETTLED end

if if_etag ~= '' or absent == '1' then
  local state, _, old = find(key)
  if absent == '1' and state ~= 'miss' then return { 'present', old[ETAG] } end
  if if_etag ~= '' and (state == 'miss' or old[ETAG] ~= if_etag) then
    return { 'changed', state == 'miss' and '' or old[ETAG] }
  end
end

-- A value that somebody loaded is as old as the miss; one that is simply put is of now.
local at
if as_of == '' then
  at = call('HINCRBY', CLOCKS, '\1c', 1)
else
  local clock, begun, gen, token = as_of:match('^(%d+)%.(%d+)%.(%w+)%.?(%w*)$')
  if gen ~= known[1] then return { 'refused', 'generation' } end
  at = tonumber(clock)
  if now - tonumber(begun) > LONGEST_LOAD then return { 'refused', 'too_old' } end
  local tag = invalidated(tags, known, at)
  if tag then return { 'refused', 'invalidated', tag } end
  local gone = call('GET', SPACE .. 'gone:' .. key)
  if gone then
    local gone_at, gone_gen = gone:match('^(%d+)%.(%w+)$')
    if gone_gen == gen and tonumber(gone_at) > at then return { 'refused', 'deleted' } end
  end
  local old = load(key)
  if old and old[GEN] == gen and old[WRITTEN] > at then return { 'refused', 'newer' } end
  local LEASE = SPACE .. 'lease:' .. key
  if token ~= '' and call('GET', LEASE) == as_of then call('DEL', LEASE) end
end

local fresh = now + tonumber(ttl)
local head = { known[1], at, at, now, fresh, fresh + tonumber(stale), etag, kind, tags }
return write(key, head, value, quota) and { 'stored', fresh } or { 'full' }
