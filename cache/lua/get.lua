-- ARGV: key; who asks for the lease (nobody: empty) and for how long.
local key, token, lease_ms = ARGV[2], ARGV[3], ARGV[4]
local state, known, head, raw, at = find(key)
if not state then return UNSETTLED end
if state == 'hit' then return answer(state, head, value_of(raw, at)) end

local as_of, lease, left = place_in_time(known), '', 0
if token ~= '' then
  local LEASE = SPACE .. 'lease:' .. key
  lease = as_of .. '.' .. token
  if not call('SET', LEASE, lease, 'NX', 'PX', lease_ms) then
    local held = call('GET', LEASE)
    if held:match('^%d+%.%d+%.(%w+)') == known[1] then
      lease, left = '', call('PTTL', LEASE)
    else  -- another generation's: what is loaded with it is refused
      call('SET', LEASE, lease, 'PX', lease_ms)
    end
  end
end
if state == 'miss' then return { 'miss', as_of, lease, left } end
local found = answer(state, head, value_of(raw, at))
found[9], found[10], found[11] = as_of, lease, left
return found
