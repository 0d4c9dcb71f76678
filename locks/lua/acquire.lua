local id, owner, ttl, meta, wait, process = unpack(ARGV, 3)
local lock = read()
local changed = pass_on(lock)

if not lock.id and queued(lock) == 0 then
  local token = next_token()
  if not token then
    if changed then store(lock) end
    return { 'dry' }
  end
  if lock.token == 0 then call('ZADD', INDEX, 0, key) end
  take(lock, id, owner, ttl, meta, token)
  store(lock)
  return { 'granted', token, now, lock.ends }
end

if wait == '0' then
  if changed then store(lock) end
  return { 'held', lock.owner or '', lock.id and lock.ends or now, queued(lock), now }
end

lock.ticket = lock.ticket + 1
local claim = { owner = owner, ttl = ttl, meta = meta, process = process, since = now, deadline = now + wait }
call('ZADD', QUEUE, lock.ticket, id)
call('HSET', CLAIMS, id, cmsgpack.pack(claim))
call('ZADD', PROCESSES, format('%d', now + LEASE), process)
call('PEXPIRE', PROCESSES, LONGEST_WAIT)
store(lock)
return { 'queued', now }
