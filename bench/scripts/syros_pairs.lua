-- Every lock that is taken is given back by the next request. BENCH_MODE=shared: all of one key; else each of its own.
require 'report'
local seed, mode = os.getenv('BENCH_SEED'), os.getenv('BENCH_MODE')
local headers = { ['Content-Type'] = 'application/json', ['X-API-Key'] = os.getenv('BENCH_API_KEY') }
local wanted = '{"key":"%s","owner":"bench","ttl_seconds":60,"mode":"' .. mode .. '"}'
local held, idle, n = {}, {}, 0

local function key()
  if mode == 'shared' then return 'bench-' .. seed end
  if #idle > 0 then return table.remove(idle) end
  n = n + 1
  return string.format('bench-%s-%d', seed, n)
end

function request()
  local place = table.remove(held)
  if not place then return wrk.format('POST', '/api/v1/locks', headers, wanted:format(key())) end
  local path = '/api/v1/locks/' .. place[1] .. '/release'
  return wrk.format('POST', path, headers, '{"lock_id":"' .. place[2] .. '"}')
end

function response(status, _, body)
  local key = body:match('"key":"([^"]+)"')
  if status == 201 then
    held[#held + 1] = { key, body:match('"lock_id":"([^"]+)"') }
  else
    idle[#idle + 1] = key
  end
end
