-- ARGV: bytes that are enough, keys. As of when, and for each its item; nothing for a miss; 'left' for what was too much.
local enough, size, found, known = tonumber(ARGV[2]), 0, {}, read_clocks({})
if not known then return UNSETTLED end
for n = 3, #ARGV do
  local state, _, head, raw, at = find(ARGV[n])
  if state == 'miss' then
    found[n - 2] = {}
  elseif size > 0 and size + #raw > enough then
    found[n - 2] = { 'left' }
  else
    size = size + #raw
    found[n - 2] = answer(state, head, value_of(raw, at))
  end
end
return { place_in_time(known), found }
