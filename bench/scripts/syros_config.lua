-- Keys of the configuration in turn, 1,000 of them: BENCH_ACTION is put, get, or read, which looks at locks instead.
require 'report'
local KEYS = 1000
local action = os.getenv('BENCH_ACTION')
local headers = { ['Content-Type'] = 'application/json', ['X-API-Key'] = os.getenv('BENCH_API_KEY') }
local n = 0

function request()
  n = n + 1
  local key = 'bench/' .. n % KEYS
  if action == 'put' then
    return wrk.format('PUT', '/api/v1/config/' .. key, headers, '{"value":{"value":"value"}}')
  end
  return wrk.format('GET', (action == 'get' and '/api/v1/config/' or '/api/v1/locks/') .. key, headers)
end
