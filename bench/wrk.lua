-- Random GETs and SETs for wrk, and its result as one line of JSON (as bench/load.py prints it).
-- Arguments: the share of GETs in percent, the number of keys, the key format, the value. The seed is fixed.

local reads, keys, key_format, value, host

function init(args)
  reads, keys, key_format, value = tonumber(args[1]), tonumber(args[2]), args[3], args[4]
  host = wrk.headers["Host"]
  math.randomseed(1)
end

function request()
  local key = string.format(key_format, math.random(keys) - 1)
  if math.random() * 100 < reads then
    return "GET /get/" .. key .. " HTTP/1.1\r\nHost: " .. host .. "\r\n\r\n"
  end
  local body = '{"key":"' .. key .. '","value":"' .. value .. '"}'
  return "POST /set HTTP/1.1\r\nHost: " .. host .. "\r\nContent-Type: application/json\r\nContent-Length: "
    .. #body .. "\r\n\r\n" .. body
end

function done(summary, latency)
  local e = summary.errors
  print(string.format('{"requests":%d,"errors":%d,"seconds":%.6f,"p50_us":%.1f,"p99_us":%.1f}',
    summary.requests, e.connect + e.read + e.write + e.status + e.timeout, summary.duration / 1e6,
    latency:percentile(50), latency:percentile(99)))
end
