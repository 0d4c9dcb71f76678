-- ARGV: keys. As of when, and for each its item or nothing.
local found, known = {}, read_clocks({})
if not known then return UNSETTLED end
for n = 2, #ARGV do
  local state, _, head, raw, at = find(ARGV[n])
  found[n - 1] = state == 'miss' and {} or answer(state, head, value_of(raw, at))
end
return { place_in_time(known), found }
