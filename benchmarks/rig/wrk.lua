-- Asks for ids drawn uniformly and checks every answer. Arguments: rows, query, expected body text, answers file.
local threads = {}
local expected = {}

function setup(thread)
  table.insert(threads, thread)
  thread:set("seed", #threads)
end

function init(args)
  rows, query, must, answers = tonumber(args[1]), args[2], args[3], args[4]
  wrong, refused = 0, 0
  if answers ~= "" then
    local row = 0
    for line in io.lines(answers) do
      expected[row] = tonumber(line)
      row = row + 1
    end
  end
  math.randomseed(os.time() * 1000 + seed)
  head = "GET /predict/user_"
  tail = query .. " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port .. "\r\n\r\n"
end

function request()
  return head .. math.random(0, rows - 1) .. tail
end

local function is_right(body)
  if not body:find(must, 1, true) then return false end
  if answers == "" then return true end
  local row = tonumber(body:match('"entity_id":%s*"user_(%d+)"'))
  local value = tonumber(body:match('"prediction":%s*([-+%deE.]+)'))
  if not row or not value or not expected[row] then return false end
  return math.abs(value - expected[row]) <= 1e-6 + 1e-5 * math.abs(expected[row])
end

function response(status, headers, body)
  if status ~= 200 then
    refused = refused + 1
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
