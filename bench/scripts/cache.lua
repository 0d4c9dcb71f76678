-- Values of 1,000 keys in turn. BENCH_DO: put, get, get_many (50 at once) or bare (of the handler in bare_get.py).
require 'report'
local KEYS, MANY = 1000, 50
local what = os.getenv('BENCH_DO')
local headers = { ['Content-Type'] = 'application/json', ['X-API-Key'] = os.getenv('BENCH_API_KEY') }
local value = string.rep('x', 200)
local n = 0

local function key(number)
  return string.format('bench/%04d', number % KEYS)
end

local function put()
  return wrk.format('PUT', '/api/v1/cache/' .. key(n), headers,
    string.format('{"value":{"text":"%s"},"ttl_seconds":3600,"tags":["t%d","all"]}', value, n % 10))
end

local function get()
  return wrk.format('GET', '/api/v1/cache/' .. key(n), headers)
end

local function get_many()
  local keys = {}
  for i = 1, MANY do keys[i] = '"' .. key(n + i) .. '"' end
  return wrk.format('POST', '/api/v1/cache/get-many', headers, '{"keys":[' .. table.concat(keys, ',') .. ']}')
end

local function bare()
  return wrk.format('GET', '/' .. key(n), headers)
end

local make = ({ put = put, get = get, get_many = get_many, bare = bare })[what]

function request()
  n = n + 1
  return make()
end
