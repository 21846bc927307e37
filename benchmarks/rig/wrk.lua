-- Asks for ids drawn uniformly and checks every answer. Arguments: rows, query, expected body text, answers file; to
-- POST also the path, a file with a row as JSON on each line, and what stands before and after a row in the body.
dofile(debug.getinfo(1, "S").source:match("@(.*/)") .. "expected.lua")
local threads = {}

function setup(thread)
  table.insert(threads, thread)
  thread:set("seed", #threads)
end

function init(args)
  rows, query, must, answers = tonumber(args[1]), args[2], args[3], args[4]
  wrong, refused = 0, 0
  if answers ~= "" then read_answers(answers) end
  math.randomseed(os.time() * 1000 + seed)
  host = " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port .. "\r\n"
  if args[5] then prepare_posts(args[5], args[6], args[7], args[8]) end
end

function prepare_posts(path, bodies, before, after)
  local posts, row = {}, 0
  for line in io.lines(bodies) do
    local body = before .. line .. after
    posts[row] = "Content-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
    row = row + 1
  end
  local head = "POST " .. path .. host
  request = function() return head .. posts[math.random(0, rows - 1)] end
end

function request()
  return "GET /predict/user_" .. math.random(0, rows - 1) .. query .. host .. "\r\n"
end

local function is_right(body)
  if not body:find(must, 1, true) then return false end
  return answers == "" or is_predicted(body)
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
