-- Makes a model version active, unless it is held or another version is labelled stable. If no version is labelled
-- stable, also refuses a version that is labelled canary, or older than the active one unless it may go backwards.
-- KEYS: pointer   ARGV: version, '1' to force (also ends its hold and its trial, and moves the label stable to it),
-- '1' to go backwards
-- Returns 1 if the version is active, 0 if it was refused.
local pointer, version, force = KEYS[1], ARGV[1], ARGV[2] == '1'

-- Compares whole numbers as text: Lua would round 2^53 + 1 to 2^53.
local function is_greater(one, other)
  if #one ~= #other then return #one > #other end
  return one > other
end

local held = redis.call('HGET', pointer, 'held') or ''
local others, is_held = {}, false
for other in string.gmatch(held, '%d+') do
  if other == version then is_held = true else others[#others + 1] = other end
end
local labels = {}
for label, given in string.gmatch(redis.call('HGET', pointer, 'labels') or '', '([^=,]+)=(%d+)') do
  labels[label] = given
end
local active = redis.call('HGET', pointer, 'version')
if not force then
  if is_held or (labels.stable and labels.stable ~= version) then return 0 end
  local newer_is_active = ARGV[3] ~= '1' and active and is_greater(active, version)
  if not labels.stable and (newer_is_active or labels.canary == version) then return 0 end
end

redis.call('HSET', pointer, 'version', version)
if is_held then redis.call('HSET', pointer, 'held', table.concat(others, ',')) end
if (labels.stable and labels.stable ~= version) or labels.canary == version then
  if labels.stable then labels.stable = version end
  if labels.canary == version then
    labels.canary = nil
    redis.call('HDEL', pointer, 'canary_share')
  end
  local list = {}
  for label, given in pairs(labels) do list[#list + 1] = label .. '=' .. given end
  table.sort(list)
  redis.call('HSET', pointer, 'labels', table.concat(list, ','))
end
return 1
