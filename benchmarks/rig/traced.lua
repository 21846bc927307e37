-- Asks for predictions and writes down when each request was due, sent and answered, and what the answer was.
-- Arguments: answers file, trace file, rows that are hits (drawn uniformly), first and last row that is a miss (each once),
-- share of misses, requests a second (0: each connection asks again as soon as it was answered).
-- A due time is kept whatever the answers do: a request that has to wait for a free connection was due all the same.
dofile(debug.getinfo(1, "S").source:match("@(.*/)") .. "expected.lua")
local ffi = require("ffi")
ffi.cdef("typedef struct { long s; long ns; } moment_t; int clock_gettime(int, moment_t *);")
local moment = ffi.new("moment_t")
local MONOTONIC = 1
local threads = {}

local function now_us()
  ffi.C.clock_gettime(MONOTONIC, moment)
  return tonumber(moment.s) * 1e6 + tonumber(moment.ns) / 1e3
end

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  read_answers(args[1])
  trace = io.open(args[2], "w")
  hits, next_miss, last_miss = tonumber(args[3]), tonumber(args[4]), tonumber(args[5])
  miss_share, rate = tonumber(args[6]), tonumber(args[7])
  due_of, sent_of = {}, {}
  exhausted = 0
  math.randomseed(os.time())
  tail = " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port .. "\r\n\r\n"
  if rate > 0 then hold_rate() end
end

function hold_rate()
  local began, slots, sent = nil, 0, 0
  function delay()
    local now = now_us()
    began = began or now
    slots = slots + 1
    return math.max(0, math.floor((began + slots * 1e6 / rate - now) / 1000 + 0.5))
  end
  -- the slots are used in the order in which they were claimed
  function next_due()
    if sent == slots then return nil end
    sent = sent + 1
    return began + sent * 1e6 / rate
  end
end

local function draw()
  if math.random() < miss_share then
    next_miss = next_miss + 1
    if next_miss > last_miss then exhausted = exhausted + 1 end
    return next_miss - 1
  end
  local row
  repeat row = math.random(0, hits - 1) until not sent_of[row]
  return row
end

function request()
  local row, now = draw(), now_us()
  sent_of[row] = now
  -- sent by a rounded number of milliseconds: what went out too early was not waiting
  due_of[row] = math.min(now, next_due and next_due() or now)
  return "GET /predict/user_" .. row .. tail
end

function response(status, headers, body)
  local now, row = now_us(), row_of(body)
  if status ~= 200 or not row then
    trace:write(string.format("-1,0,0,0,status %d\n", status))
    return
  end
  local outcome = is_predicted(body) and body:match('"outcome":%s*"([%a_]+)"') or "wrong"
  trace:write(string.format("%d,%.0f,%.0f,%.0f,%s\n", row, due_of[row], sent_of[row], now, outcome))
  sent_of[row] = nil
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "duration_us": %d, "lost": %d, "next_miss": %d, "exhausted": %d}\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.timeout,
    threads[1]:get("next_miss"), threads[1]:get("exhausted")))
end
