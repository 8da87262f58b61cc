-- Requests for wrk, drawn at random, and its result as one line of JSON (as bench/load.py prints it).
-- Arguments: the number of keys; then, of each request, its share in percent and its text, a format that takes
-- the numbers of keys. Those that take many are made once. The seed is fixed.

local POOL = 256
local keys, kinds = 0, {}

local function make(kind)
  local numbers = {}
  for i = 1, kind.numbers do
    numbers[i] = math.random(keys) - 1
  end
  return string.format(kind.text, unpack(numbers))
end

function init(args)
  math.randomseed(1)
  keys = tonumber(args[1])
  for i = 2, #args, 2 do
    local kind = { share = tonumber(args[i]), text = args[i + 1], pool = {} }
    kind.numbers = select(2, kind.text:gsub("%%", ""))
    for n = 1, kind.numbers > 1 and POOL or 0 do
      kind.pool[n] = make(kind)
    end
    table.insert(kinds, kind)
  end
end

function request()
  local draw = math.random() * 100
  for _, kind in ipairs(kinds) do
    draw = draw - kind.share
    if draw < 0 then
      return kind.pool[math.random(POOL)] or make(kind)
    end
  end
end

function done(summary, latency)
  local e = summary.errors
  print(string.format('{"requests":%d,"errors":%d,"seconds":%.6f,"p50_us":%.1f,"p99_us":%.1f}',
    summary.requests, e.connect + e.read + e.write + e.status + e.timeout, summary.duration / 1e6,
    latency:percentile(50), latency:percentile(99)))
end
