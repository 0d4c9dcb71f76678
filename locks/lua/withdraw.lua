-- A waiter gives up its place: it timed out (`keep`) or its client is gone (then it gives back what it was granted).
local id, keep = ARGV[3], ARGV[4] == '1'
local lock = read()
local was_queued = leave(id)
if was_queued or (lock.id == id and is_held(lock)) then
  if not was_queued then
    if keep then return { 'granted', lock.token, lock.at, lock.ends } end
    finish(lock, 'r')
  end
  pass_on(lock)
  store(lock)
end
return { 'left', lock.owner or '', queued(lock) }
