-- Posts one body again and again and checks every answer. Arguments: body file, content type, header length (or ""),
-- pattern of a prediction in the answer (or "" for little-endian floats at its end), answers file.
local threads = {}
local expected = {}
local ffi = require("ffi")

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  local file = assert(io.open(args[1], "rb"))
  wrk.method, wrk.body = "POST", file:read("*a")
  file:close()
  wrk.headers["Content-Type"] = args[2]
  if args[3] ~= "" then wrk.headers["Inference-Header-Content-Length"] = args[3] end
  pattern = args[4]
  wrong, refused = 0, 0
  for line in io.lines(args[5]) do
    table.insert(expected, tonumber(line))
  end
  request_bytes = wrk.format()
end

function request()
  return request_bytes
end

local function is_near(value, row)
  return value and expected[row] and math.abs(value - expected[row]) <= 1e-6 + 1e-5 * math.abs(expected[row])
end

local function is_right(body)
  local row = 0
  if pattern == "" then
    local floats = ffi.cast("const float *", ffi.cast("const char *", body) + #body - 4 * #expected)
    for number = 1, #expected do
      if not is_near(floats[number - 1], number) then return false end
    end
    return true
  end
  for text in body:gmatch(pattern) do
    row = row + 1
    if not is_near(tonumber(text), row) then return false end
  end
  return row == #expected
end

function response(status, headers, body)
  if status ~= 200 then
    refused = refused + 1
    sample = body
  elseif not is_right(body) then
    wrong = wrong + 1
    sample = body
  end
end

function done(summary, latency, requests)
  local wrong_total, refused_total, shown = 0, 0, ""
  for _, thread in ipairs(threads) do
    wrong_total = wrong_total + thread:get("wrong")
    refused_total = refused_total + thread:get("refused")
    shown = thread:get("sample") or shown
  end
  local e = summary.errors
  if shown ~= "" then io.write("WRONG ", shown:sub(1, 300):gsub("\n", " "), "\n") end
  io.write(string.format(
    'RESULT {"requests": %d, "duration_us": %d, "wrong": %d, "refused": %d, "lost": %d, '
      .. '"p50_us": %.0f, "p99_us": %.0f, "max_us": %.0f}\n',
    summary.requests, summary.duration, wrong_total, refused_total, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
