-- One fresh lock per request. Twelve digits are valid base64 as they are, so neither load generator encodes anything.
require 'report'
local seed = os.getenv('BENCH_SEED')
local headers = { ['Content-Type'] = 'application/json' }
local n = 0

function request()
  n = n + 1
  return wrk.format('POST', '/v3/lock/lock', headers, string.format('{"name":"%s%08d"}', seed, n))
end
