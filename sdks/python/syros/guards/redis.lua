-- A fencing guard for your own Redis or Valkey (5 or newer): a guarded command, the comparison and the write in one
-- script, so that nothing comes between. Keep this file and send it with EVAL, or load it once with SCRIPT LOAD:
--
--     redis-cli EVAL "$(cat this-file)" 2 syros_guard:{orders/7} {orders/7} 1099511627777 SET shipped
--
-- KEYS[1]  where the largest token is kept; in a cluster it needs the hash tag of what it guards
-- KEYS[2…] the keys of the command
-- ARGV[1]  the fencing_token of your grant
-- ARGV[2]  the command: SET, HSET, DEL, INCRBY, XADD … any that begins with its keys
-- ARGV[3…] the rest of the command
--
-- It takes a token that is at least the largest that this resource has seen, remembers it, and answers what the command
-- answers. A smaller one is that of a holder whose lock has passed on: the error is `STALE stale fencing token …` and
-- nothing is written. ARGV[2] may also be GET: who reads to write later reads guarded too, or a stale writer could
-- still come between the reading and the writing.
--
-- The guard knows what Redis still knows: give its keys no time to live, keep them from being evicted, and mind that a
-- failover may lose the newest writes, the guard's among them.
--
-- For exclusive locks only. Of a shared lock or a semaphore several tokens are alive at once, and this guard would
-- refuse all holders but the newest.

local guard, token, command = KEYS[1], ARGV[1], ARGV[2]

if not token or not token:match("^[1-9]%d*$") or #token > 19 then
  return redis.error_reply("ERR a fencing token is a positive integer")
end
if not command then
  return redis.error_reply("ERR there is no command to guard")
end

-- Compared as texts: Lua's numbers are exact to 2^53 only.
local seen = redis.call("GET", guard)
if seen and (#token < #seen or (#token == #seen and token < seen)) then
  return redis.error_reply("STALE stale fencing token " .. token .. " of " .. guard .. ": " .. seen .. " has been seen")
end

redis.call("SET", guard, token)
local arguments = { command }
for i = 2, #KEYS do
  arguments[#arguments + 1] = KEYS[i]
end
for i = 3, #ARGV do
  arguments[#arguments + 1] = ARGV[i]
end
return redis.call(unpack(arguments))
