local id = ARGV[3]
local lock = read()
if lock.id ~= id or not is_held(lock) then return { 'not_held', why_not_held(lock, id) } end
local token = lock.token
finish(lock, 'r')
pass_on(lock)
store(lock)
return { 'released', token }
