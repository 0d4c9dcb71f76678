-- Forget, of some names in the index, those whose lock has vanished. How many these were.
local names, gone = call('ZRANDMEMBER', INDEX, ARGV[3]), 0
for _, name in ipairs(names) do
  if call('EXISTS', SPACE .. 'lock:' .. name) == 0 then
    call('ZREM', INDEX, name)
    gone = gone + 1
  end
end
return gone
