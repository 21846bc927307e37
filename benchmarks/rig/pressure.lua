-- More load than a server can take: answers, fallbacks and refusals are all right, and are counted. Arguments: rows, query,
-- milliseconds after which an answer is late, milliseconds from the opening of connections to the first requests, the
-- number of connections.
local threads = {}

function setup(thread)
  table.insert(threads, thread)
  thread:set("seed", #threads)
end

function init(args)
  rows, query, late_ms = tonumber(args[1]), args[2], tonumber(args[3])
  if tonumber(args[4]) > 0 then hold_first(tonumber(args[4]), tonumber(args[5])) end
  answered, fallback, shed, wrong = 0, 0, 0, 0
  math.randomseed(os.time() * 1000 + seed)
  head = "GET /predict/user_"
  tail = query .. " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port .. "\r\n\r\n"
end

function hold_first(first_ms, connections)
  local held = 0
  function delay()
    held = held + 1
    return held <= connections and first_ms or 0
  end
end

function request()
  return head .. math.random(0, rows - 1) .. tail
end

function response(status, headers, body)
  if status == 200 and body:find('"degraded":true', 1, true) then
    fallback = fallback + 1
  elseif status == 200 then
    answered = answered + 1
  elseif status == 503 then
    shed = shed + 1
  else
    wrong = wrong + 1
  end
end

-- the share of requests that took longer than some microseconds, to a thousandth
local function share_over(latency, limit_us)
  for per_mille = 999, 0, -1 do
    if per_mille == 0 or latency:percentile(per_mille / 10) <= limit_us then return 1 - per_mille / 1000 end
  end
end

function done(summary, latency, requests)
  local sums = { answered = 0, fallback = 0, shed = 0, wrong = 0 }
  for _, thread in ipairs(threads) do
    for name in pairs(sums) do sums[name] = sums[name] + thread:get(name) end
  end
  local e = summary.errors
  io.write(string.format(
    'RESULT {"duration_s": %.3f, "answered": %d, "fallback": %d, "shed": %d, "wrong": %d, "lost": %d, '
      .. '"p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f, "late": %.3f}\n',
    summary.duration / 1e6, sums.answered, sums.fallback, sums.shed, sums.wrong, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000,
    share_over(latency, threads[1]:get("late_ms") * 1000)))
end
