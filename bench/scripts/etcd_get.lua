-- A range of one key per request, 1,000 keys in turn: those that etcd_put has put.
require 'report'
local KEYS = 1000
local headers = { ['Content-Type'] = 'application/json' }
local n = 0

function request()
  n = n + 1
  local body = string.format('{"key":"%012d"}', n % KEYS)
  return wrk.format('POST', '/v3/kv/range', headers, body)
end
