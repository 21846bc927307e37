-- Replaces overlay entries of predictions with a note: newer features have just been stored.
-- KEYS: the overlay keys   ARGV: milliseconds to keep, then for each key the second before which rows are outdated
-- A note is an entry without a row, with zeros in place of the schema's digest; upsert.lua respects it.
local OUTDATED, UPSERT = string.rep('\0', 6), 2
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000

for i = 1, #KEYS do
  local old, as_of = redis.call('GETRANGE', KEYS[i], 0, 22), tonumber(ARGV[i + 1])
  if string.sub(old, 14, 19) == OUTDATED then as_of = math.max(as_of, (struct.unpack('<I4', old, 20))) end
  redis.call('SET', KEYS[i], struct.pack('<dI4Bc6I4', now, 0, UPSERT, OUTDATED, as_of), 'PX', ARGV[1])
end
