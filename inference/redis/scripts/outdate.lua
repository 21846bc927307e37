-- Replaces overlay entries of predictions with a note: newer features have just been stored.
-- KEYS: the overlay keys   ARGV: milliseconds to keep, then for each key the second before which rows are outdated
-- A note is an entry without a row, with zeros in place of the schema's digest; upsert.lua respects it.
local OUTDATED, UPSERT = string.rep('\0', 6), 2
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000

local function set(key, as_of)
  local note = struct.pack('<dI4Bc6I4', now, 0, UPSERT, OUTDATED, as_of)
  return redis.call('SET', key, note, 'PX', ARGV[1], 'GET') or ''
end

for i = 1, #KEYS do
  local as_of = tonumber(ARGV[i + 1])
  local old = set(KEYS[i], as_of)
  if string.sub(old, 14, 19) == OUTDATED then
    -- rare: a change of other features with a later event time came first
    local later = struct.unpack('<I4', old, 20)
    if later > as_of then set(KEYS[i], later) end
  end
end
