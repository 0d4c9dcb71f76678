-- ARGV: key, quota, by, what it begins with, ttl ms, largest number, tags.
local key, quota, by, initial = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local ttl, largest = tonumber(ARGV[6]), tonumber(ARGV[7])
local state, known, head, raw, at = find(key)
if not state then return UNSETTLED end
local number = initial
if state ~= 'miss' then
  local text = value_of(raw, at)
  if head[KIND] ~= 'j-' or not text:match('^%-?%d+$') then return { 'no_number' } end
  number = tonumber(text)
  if math.abs(number) > largest then return { 'too_large' } end  -- it is not the number of that text
else
  head = { known[1], 0, now, now + ttl, now + ttl, '', 'j-', { unpack(ARGV, 8) }, now }
end
number = number + by
if math.abs(number) > largest then return { 'too_large' } end
local text = format('%d', number)
local clock = call('HINCRBY', CLOCKS, '\1c', 1)
write_down(key, clock)
if state == 'miss' then head[AS_OF] = clock end
head[ETAG] = redis.sha1hex(text):sub(1, 20)
if not write(key, head, text, quota) then return { 'full' } end
return { 'stored', text, head[FRESH], head[ETAG] }
