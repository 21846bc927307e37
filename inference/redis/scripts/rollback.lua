-- Goes back to the previous generation and its model version, and holds the versions left behind. Moves the label
-- stable to that version, and ends its trial.
-- KEYS: pointer; for a cluster also the current and the previous generation   ARGV: the expected current generation, generation prefix
-- Returns {'ok', the new pointer}, {'moved'} (another one is current), or {'none'} (no previous generation).
local function done(pointer)
  local fields = { 'current', 'previous', 'version', 'held', 'incarnation', 'labels', 'canary_share' }
  return { 'ok', unpack(redis.call('HMGET', pointer, unpack(fields))) }
end

local pointer, expected, prefix = KEYS[1], ARGV[1], ARGV[2]

local current = redis.call('HGET', pointer, 'current')
local previous = redis.call('HGET', pointer, 'previous')
if current ~= expected then return { 'moved' } end
if not previous then return { 'none' } end

redis.call('HSET', pointer, 'current', previous)
redis.call('HDEL', pointer, 'previous')
redis.call('HSET', prefix .. previous, 'state', 'current')
redis.call('HSET', prefix .. current, 'state', 'collecting')

local back = redis.call('HGET', prefix .. previous, 'version')
if back == '0' then return done(pointer) end -- features have no versions

local held = {}
for version in string.gmatch(redis.call('HGET', pointer, 'held') or '', '%d+') do held[version] = true end
local left = redis.call('HGET', prefix .. current, 'version')
local active = redis.call('HGET', pointer, 'version')
if left then held[left] = true end
-- a newer version may be active without a generation yet: hold it too
if active then held[active] = true end
held[back] = nil

local list = {}
for version in pairs(held) do list[#list + 1] = version end
redis.call('HSET', pointer, 'version', back, 'held', table.concat(list, ','))

local labels = {}
for label, given in string.gmatch(redis.call('HGET', pointer, 'labels') or '', '([^=,]+)=(%d+)') do
  if label == 'stable' then given = back end
  if label == 'canary' and given == back then
    redis.call('HDEL', pointer, 'canary_share')
  else
    labels[#labels + 1] = label .. '=' .. given
  end
end
redis.call('HSET', pointer, 'labels', table.concat(labels, ','))
return done(pointer)
