local id, ttl = ARGV[3], ARGV[4]
local lock = read()
if lock.id ~= id or not is_held(lock) then return { 'not_held', why_not_held(lock, id) } end
if ttl ~= '' then lock.ttl = ttl end
lock.ends = now + floor(lock.ttl * 1000000)
store(lock)
return { 'granted', lock.token, lock.at, lock.ends, lock.owner, lock.ttl }
