-- Sets a label of a model version, or removes the label.
-- KEYS: pointer   ARGV: label, version ('' removes the label), the canary's share ('' for other labels)
-- Labelling a version stable ends its hold and its trial.
local pointer, name, version, share = KEYS[1], ARGV[1], ARGV[2], ARGV[3]

local labels = {}
for label, given in string.gmatch(redis.call('HGET', pointer, 'labels') or '', '([^=,]+)=(%d+)') do
  labels[label] = given
end
labels[name] = version ~= '' and version or nil
if name == 'stable' and version ~= '' then
  if labels.canary == version then labels.canary = nil end
  local others = {}
  for held in string.gmatch(redis.call('HGET', pointer, 'held') or '', '%d+') do
    if held ~= version then others[#others + 1] = held end
  end
  redis.call('HSET', pointer, 'held', table.concat(others, ','))
end

local list = {}
for label, given in pairs(labels) do list[#list + 1] = label .. '=' .. given end
table.sort(list)
redis.call('HSET', pointer, 'labels', table.concat(list, ','))
if not labels.canary then
  redis.call('HDEL', pointer, 'canary_share')
elseif share ~= '' then
  redis.call('HSET', pointer, 'canary_share', share)
end
