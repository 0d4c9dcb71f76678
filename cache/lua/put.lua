-- ARGV: key, until when, quota, as_of or lease, if_etag, only if absent (1), ttl and stale ms, etag, kind, value, tags.
local key, latest, quota, as_of, if_etag, absent, ttl, stale, etag, kind, value = unpack(ARGV, 2, 12)
local tags = { unpack(ARGV, 13) }
-- It was long on the way, or in a server that stood still. Who sent it has been told that it is not stored, and what may
-- have been put since is not to be replaced.
if now > tonumber(latest) then return { 'late' } end
local known = read_clocks(tags)
if not known then return UNSETTLED end

-- The load is over, whatever becomes of the value.
local LEASE = SPACE .. 'lease:' .. key
if #as_of > 0 and call('GET', LEASE) == as_of then call('DEL', LEASE) end

if if_etag ~= '' or absent == '1' then
  local state, _, old = find(key)
  if absent == '1' and state ~= 'miss' then return { 'present', old[ETAG] } end
  if if_etag ~= '' and (state == 'miss' or old[ETAG] ~= if_etag) then
    return { 'changed', state == 'miss' and '' or old[ETAG] }
  end
end

-- A value that somebody loaded is as old as the miss; one that is simply put is of now.
local at, begun = nil, now
if as_of == '' then
  at = call('HINCRBY', CLOCKS, '\1c', 1)
  write_down(key, at)
else
  local clock, since, gen = as_of:match('^(%d+)%.(%d+)%.(%w+)')
  at, begun = tonumber(clock), tonumber(since)
  if gen ~= known[1] or at > tonumber(known[2]) then return { 'refused', 'generation' } end
  if now - begun > LONGEST_LOAD then return { 'refused', 'too_old' } end
  local tag = invalidated(tags, known, at)
  if tag then return { 'refused', 'invalidated', tag } end
  local written = call('HMGET', CLOCKS, '\3' .. key, '\1d')
  local written_at, mark = (written[1] or '0'):match('^(%d+)(d?)$')
  if tonumber(written_at) > at then return { 'refused', mark == 'd' and 'deleted' or 'newer' } end
  if tonumber(written[2] or 0) > at then return { 'refused', 'newer' } end
  local old = load(key)
  if old and old[GEN] == gen and (old[AS_OF] > at or old[AS_OF] == at and (old[BEGUN] or 0) > begun) then
    return { 'refused', 'newer' }
  end
end

local fresh = now + tonumber(ttl)
local head = { known[1], at, now, fresh, fresh + tonumber(stale), etag, kind, tags, begun }
return write(key, head, value, quota) and { 'stored', fresh } or { 'full' }
