-- One revision per request, for 1,000 keys in turn, as Syros appends to 1,000 streams.
require 'report'
local KEYS = 1000
local headers = { ['Content-Type'] = 'application/json' }
local n = 0

function request()
  n = n + 1
  local body = string.format('{"key":"%012d","value":"dmFsdWU="}', n % KEYS)
  return wrk.format('POST', '/v3/kv/put', headers, body)
end
