-- What every script of locks begins with: the lock, its queue and the time, as locks/rules.py has them in memory.
--
-- KEYS: what all names of the namespace begin with. It holds their hash tag, so they are in one slot of a cluster.
-- ARGV: the lock's key, the run of the server; then what the script takes. Times are microseconds by this server's clock.
-- Functions that are seldom needed are made where they are: making them takes as long as a command.
local call, format, floor = redis.call, string.format, math.floor
local SPACE, key = KEYS[1], ARGV[1]
local LOCK, QUEUE, CLAIMS = SPACE .. 'lock:' .. key, SPACE .. 'queue:' .. key, SPACE .. 'claims:' .. key
local INDEX, PROCESSES = SPACE .. 'index', SPACE .. 'processes'
local REMEMBER = 60000  -- ms that a lock nobody holds is remembered: its last token, what became of its holds
local LONGEST_WAIT = 300000  -- ms
local LEASE = 3000000  -- µs that a process with waiters is believed to live after it said so
local MARK, ENDINGS = 8, 32  -- letters of a lock_id that tell holds apart; so many are remembered

local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- What is known of a lock: its last `token` and `ticket`, its last `endings`; while it is held `id`, `owner`, `ttl`, `meta`,
-- `at` and `ends`.
local function read()
  local packed = call('GET', LOCK)
  return packed and cmsgpack.unpack(packed) or { token = 0, ticket = 0, endings = '' }
end

local function is_held(lock)
  return lock.id and lock.ends > now
end

local function queued(lock)
  return lock.ticket > 0 and call('ZCARD', QUEUE) or 0
end

-- Write a lock back. It vanishes by itself a while after its hold's end, and not before the last waiter.
local function store(lock)
  local life = REMEMBER + (is_held(lock) and floor((lock.ends - now) / 1000) or 0)
  if queued(lock) > 0 then
    life = life + LONGEST_WAIT
    call('PEXPIRE', QUEUE, format('%d', life))
    call('PEXPIRE', CLAIMS, format('%d', life))
  end
  call('SET', LOCK, cmsgpack.pack(lock), 'PX', format('%d', life))
end

-- The next token of the namespace; none when the block of 2^20 is used up, or gone with all else the server had. They are
-- counted for one run of one server: a replica that took over, or a server that came back with what it had on disk, may
-- have missed the last ones.
local function next_token()
  local tokens = SPACE .. 'tokens:' .. ARGV[2]
  local token = call('INCR', tokens)
  if token == 1 then
    call('DEL', tokens)
  elseif token % 1048576 == 0 then
    call('DECR', tokens)
  else
    return token
  end
end

local function take(lock, id, owner, ttl, meta, token)
  lock.id, lock.owner, lock.ttl, lock.meta, lock.token = id, owner, ttl, meta, token
  lock.at, lock.ends = now, now + floor(ttl * 1000000)
end

-- End the present hold and remember why: `r`eleased or `e`xpired.
local function finish(lock, reason)
  lock.endings = (lock.id:sub(1, MARK) .. reason .. lock.endings):sub(1, ENDINGS * (MARK + 1))
  lock.id, lock.owner, lock.meta = nil, nil, nil
end

local function leave(id)
  call('HDEL', CLAIMS, id)
  return call('ZREM', QUEUE, id) == 1
end

-- End a hold whose time is up and give a free lock to the first that still waits. Strict FIFO: nobody overtakes.
-- Whether anything changed; whether tokens are missing for it.
local function pass_on(lock)
  local changed = false
  if lock.id and lock.ends <= now then
    finish(lock, 'e')
    changed = true
  end
  if lock.id or lock.ticket == 0 then return changed, false end

  local function is_alive(process)
    return tonumber(call('ZSCORE', PROCESSES, process) or 0) > now
  end

  -- A process that does not hear of it, because it was killed, is passed over.
  local function offer(id, claim, token)
    local ends = now + floor(claim.ttl * 1000000)
    if call('PUBLISH', claim.process, format('%s %d %d %d', id, token, now, ends)) > 0 then
      take(lock, id, claim.owner, claim.ttl, claim.meta, token)
    end
  end

  while not lock.id do
    local id = call('ZRANGE', QUEUE, 0, 0)[1]
    if not id then break end
    local packed = call('HGET', CLAIMS, id)
    local claim = packed and cmsgpack.unpack(packed)
    if claim and claim.deadline > now and is_alive(claim.process) then
      local token = next_token()
      if not token then return changed, true end
      offer(id, claim, token)
    end
    leave(id)
    changed = true
  end
  return changed, false
end

local function why_not_held(lock, id)
  if lock.id == id then return 'expired' end
  for start = 1, #lock.endings, MARK + 1 do
    if lock.endings:sub(start, start + MARK - 1) == id:sub(1, MARK) then
      return lock.endings:sub(start + MARK, start + MARK) == 'r' and 'released' or 'expired'
    end
  end
  return 'never_held'
end
