-- Prints what wrk measured as one line of JSON, the last of its output.
local PERCENTILES = { 50, 90, 99 }

function done(summary, latency)
  local errors = summary.errors
  local fields = {
    string.format('"requests":%d', summary.requests),
    string.format('"seconds":%.6f', summary.duration / 1e6),
    string.format('"refused":%d', errors.status),
    string.format('"broken":%d', errors.connect + errors.read + errors.write + errors.timeout),
  }
  for _, p in ipairs(PERCENTILES) do
    fields[#fields + 1] = string.format('"p%d_ms":%.3f', p, latency:percentile(p) / 1e3)
  end
  io.write('{' .. table.concat(fields, ',') .. '}\n')
end
