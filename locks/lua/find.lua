-- Locks in order of their keys: no more than so many are looked at, whatever is asked for.
-- ARGV: lowest and highest key, owner, held and contended (1, 0 or nothing), how many to answer, how many to look at.
local low, high, owner, held, contended, limit, most = unpack(ARGV, 3)
local names = call('ZRANGEBYLEX', INDEX, low, high, 'LIMIT', 0, most)
local found, last = {}, ''
for _, name in ipairs(names) do
  if #found >= tonumber(limit) then break end
  last = name
  LOCK, QUEUE = SPACE .. 'lock:' .. name, SPACE .. 'queue:' .. name
  local lock = read()
  if lock.token == 0 then
    call('ZREM', INDEX, name)
  else
    local is, waiting = is_held(lock) and 1 or 0, queued(lock)
    if (owner == '' or (is == 1 and lock.owner == owner)) and (held == '' or tonumber(held) == is)
      and (contended == '' or (contended == '1') == (waiting > 0)) then
      found[#found + 1] = {
        name, is, lock.token, lock.owner or '', lock.at or 0, lock.ends or 0, lock.meta or '', waiting,
      }
    end
  end
end
local is_all = #names < tonumber(most) and last == (names[#names] or '')
return { found, last, is_all and 1 or 0 }
