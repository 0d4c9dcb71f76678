-- A third each: a fresh lock, a fresh lock with an Idempotency-Key, an event.
require 'report'
local seed = os.getenv('BENCH_SEED')
local plain = { ['Content-Type'] = 'application/json', ['X-API-Key'] = os.getenv('BENCH_API_KEY') }
local keyed = { ['Content-Type'] = 'application/json', ['X-API-Key'] = os.getenv('BENCH_API_KEY') }
local n = 0

function request()
  n = n + 1
  if n % 3 == 0 then
    local body = '{"event_type":"Measured","data":{"value":"value"}}'
    return wrk.format('POST', '/api/v1/events/bench-' .. n % 1000, plain, body)
  end
  local headers = plain
  if n % 3 == 1 then
    headers = keyed
    headers['Idempotency-Key'] = string.format('%s-%08d', seed, n)
  end
  local body = string.format('{"key":"bench/%s-%08d","owner":"bench","ttl_seconds":60}', seed, n)
  return wrk.format('POST', '/api/v1/locks', headers, body)
end
