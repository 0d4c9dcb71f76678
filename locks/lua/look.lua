-- ARGV: how many waiters to tell of.
local lock, limit = read(), tonumber(ARGV[3])
local waiters = {}
if limit > 0 and lock.ticket > 0 then
  local ids = call('ZRANGE', QUEUE, 0, limit - 1, 'WITHSCORES')
  for at = 1, #ids, 2 do
    local packed = call('HGET', CLAIMS, ids[at])
    local claim = packed and cmsgpack.unpack(packed)
    if claim and claim.deadline > now then
      waiters[#waiters + 1] = { tonumber(ids[at + 1]), claim.owner, claim.since, claim.deadline, now - claim.since }
    end
  end
end
return {
  is_held(lock) and 1 or 0, lock.token, lock.owner or '', lock.at or 0, lock.ends or 0, lock.meta or '', queued(lock),
  waiters,
}
