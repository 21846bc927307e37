-- What TensorFlow predicts for each row, and whether a body says the same.
local expected = {}

function read_answers(file)
  local row = 0
  for line in io.lines(file) do
    expected[row] = tonumber(line)
    row = row + 1
  end
end

function row_of(body)
  return tonumber(body:match('"entity_id":%s*"user_(%d+)"'))
end

function is_predicted(body)
  local row = row_of(body)
  local value = tonumber(body:match('"prediction":%s*([-+%deE.]+)'))
  if not row or not value or not expected[row] then return false end
  return math.abs(value - expected[row]) <= 1e-6 + 1e-5 * math.abs(expected[row])
end
