-- One fresh lock per request. The TTL is that of a lease of etcd's lock service.
-- BENCH_KEYED=1: each request has an Idempotency-Key, a fresh one too.
require 'report'
local seed, keyed = os.getenv('BENCH_SEED'), os.getenv('BENCH_KEYED') == '1'
local headers = { ['Content-Type'] = 'application/json', ['X-API-Key'] = os.getenv('BENCH_API_KEY') }
local n = 0

function request()
  n = n + 1
  if keyed then headers['Idempotency-Key'] = string.format('%s-%08d', seed, n) end
  local body = string.format('{"key":"bench/%s-%08d","owner":"bench","ttl_seconds":60}', seed, n)
  return wrk.format('POST', '/api/v1/locks', headers, body)
end
