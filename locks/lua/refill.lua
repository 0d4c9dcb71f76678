-- A block of tokens, reserved in the database. Of two that come at once the higher one stays.
local tokens = SPACE .. 'tokens:' .. ARGV[2]
if tonumber(ARGV[3]) > tonumber(call('GET', tokens) or 0) then
  call('SET', tokens, ARGV[3], 'PX', 86400000)
end
return 1
