-- What a process looks at twice a second for those who wait in it: its lease goes on, holds that ran out end, and who
-- was granted or passed over without hearing of it is told.
-- ARGV: the process; then lock by lock its key, how many wait for it, and their ids.
local process, place, missing, news = ARGV[3], 4, 0, {}
call('ZADD', PROCESSES, format('%d', now + LEASE), process)
call('PEXPIRE', PROCESSES, LONGEST_WAIT)
call('ZREMRANGEBYSCORE', PROCESSES, '-inf', format('%d', now - 20 * LEASE))

while place < #ARGV do
  local name, count = ARGV[place], tonumber(ARGV[place + 1])
  LOCK, QUEUE, CLAIMS = SPACE .. 'lock:' .. name, SPACE .. 'queue:' .. name, SPACE .. 'claims:' .. name
  local lock = read()
  local changed, dry = pass_on(lock)
  if changed then store(lock) end
  if dry then missing = 1 end
  for at = place + 2, place + 1 + count do
    local id = ARGV[at]
    if lock.id == id then
      news[#news + 1] = { id, 'granted', lock.token, lock.at, lock.ends }
    elseif not call('ZSCORE', QUEUE, id) then
      news[#news + 1] = { id, 'gone' }
    end
  end
  place = place + 2 + count
end
return { missing, news }
