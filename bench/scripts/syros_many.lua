-- Eight fresh locks per request, all or none.
require 'report'
local KEYS = 8
local seed = os.getenv('BENCH_SEED')
local headers = { ['Content-Type'] = 'application/json', ['X-API-Key'] = os.getenv('BENCH_API_KEY') }
local n = 0

function request()
  n = n + 1
  local keys = {}
  for i = 1, KEYS do keys[i] = string.format('"bench/%s-%08d-%d"', seed, n, i) end
  local body = '{"keys":[' .. table.concat(keys, ',') .. '],"owner":"bench","ttl_seconds":60}'
  return wrk.format('POST', '/api/v1/locks/acquire-many', headers, body)
end
