-- Makes a model version the active one, unless it is held or older than the active one.
-- KEYS: pointer   ARGV: version, '1' to insist (which also ends a hold)
-- Returns 1 when the version is active, 0 when it was refused.
local pointer, version, force = KEYS[1], ARGV[1], ARGV[2] == '1'

local held = redis.call('HGET', pointer, 'held') or ''
local others, is_held = {}, false
for other in string.gmatch(held, '%d+') do
  if other == version then is_held = true else others[#others + 1] = other end
end
local active = redis.call('HGET', pointer, 'version')
if not force and (is_held or (active and tonumber(active) > tonumber(version))) then return 0 end

redis.call('HSET', pointer, 'version', version)
if is_held then redis.call('HSET', pointer, 'held', table.concat(others, ',')) end
return 1
