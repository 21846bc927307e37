-- Stores overlay entries, except over one of the same model version that is newer by (as_of, computed_at), and over a
-- note of `outdate` those that may have been computed before the features changed.
-- KEYS: schemas, then the overlay keys   ARGV: milliseconds to keep, schema digest, schema, then the entries
-- An entry starts with computed_at (double), version (uint32), origin (1 byte), digest (6 bytes), as_of (uint32).
redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[3])

local OUTDATED, REALTIME, SINCE_CHANGE = string.rep('\0', 6), 1, 3

local function is_newer(old, new)
  local old_computed_at, old_version = struct.unpack('<dI4', old)
  local new_computed_at, new_version = struct.unpack('<dI4', new)
  local old_as_of, new_as_of = struct.unpack('<I4', old, 20), struct.unpack('<I4', new, 20)
  if string.sub(old, 14, 19) == OUTDATED then
    -- on demand: from what was stored by then; a run's rows: from a table that may lack the change
    if string.byte(new, 13) == REALTIME then return old_computed_at > new_computed_at end
    return old_as_of > new_as_of
  end
  if old_version ~= new_version then return false end
  if old_as_of ~= new_as_of then return old_as_of > new_as_of end
  return old_computed_at > new_computed_at
end

for i = 2, #KEYS do
  local old, new = redis.call('GETRANGE', KEYS[i], 0, 22), ARGV[i + 2]
  if old == '' or not is_newer(old, new) then
    local follows = string.sub(old, 14, 19) == OUTDATED or string.byte(old, 13) == SINCE_CHANGE
    if old ~= '' and follows and string.byte(new, 13) == REALTIME then
      new = string.sub(new, 1, 12) .. string.char(SINCE_CHANGE) .. string.sub(new, 14)
    end
    redis.call('SET', KEYS[i], new, 'PX', ARGV[1])
  end
end
