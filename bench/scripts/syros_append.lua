-- Events for 1,000 streams in turn; BENCH_EVENTS of them a request.
require 'report'
local STREAMS = 1000
local count = tonumber(os.getenv('BENCH_EVENTS'))
local headers = { ['Content-Type'] = 'application/json', ['X-API-Key'] = os.getenv('BENCH_API_KEY') }
local event = '{"event_type":"Measured","data":{"value":"value"}}'
local body = count == 1 and event or '{"events":[' .. string.rep(event, count, ',') .. ']}'
local n = 0

function request()
  n = n + 1
  return wrk.format('POST', '/api/v1/events/bench-' .. n % STREAMS, headers, body)
end
