-- One fresh lock per request, as syros_lock.lua, by a mutation whose text is always the same.
require 'report'
local seed = os.getenv('BENCH_SEED')
local headers = { ['Content-Type'] = 'application/json', ['X-API-Key'] = os.getenv('BENCH_API_KEY') }
local document = 'mutation($key: String!) { locksAcquire(key: $key, owner: \\"bench\\", ttlSeconds: 60) '
  .. '{ lockId fencingToken expiresAt } }'
local n = 0

function request()
  n = n + 1
  local body = string.format('{"query":"%s","variables":{"key":"bench/%s-%08d"}}', document, seed, n)
  return wrk.format('POST', '/graphql', headers, body)
end

-- A field that is refused is in the answer, whose status is 200.
local threads, told = {}, done
bad = 0

function setup(thread)
  threads[#threads + 1] = thread
end

function response(_, _, body)
  if body:find('"errors"', 1, true) then bad = bad + 1 end
end

function done(summary, latency)
  for _, thread in ipairs(threads) do
    summary.errors.status = summary.errors.status + thread:get('bad')
  end
  told(summary, latency)
end
