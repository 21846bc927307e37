-- Stores overlay entries, except over one of the same model version that is newer by (as_of, computed_at).
-- KEYS: schemas, then the overlay keys   ARGV: milliseconds to keep, schema digest, schema, then the entries
-- An entry starts with computed_at (double), version (uint32), origin (1 byte), digest (6 bytes), as_of (uint32).
redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[3])

local function is_newer(old, new)
  local old_computed_at, old_version = struct.unpack('<dI4', old)
  local new_computed_at, new_version = struct.unpack('<dI4', new)
  if old_version ~= new_version then return false end
  local old_as_of, new_as_of = struct.unpack('<I4', old, 20), struct.unpack('<I4', new, 20)
  if old_as_of ~= new_as_of then return old_as_of > new_as_of end
  return old_computed_at > new_computed_at
end

for i = 2, #KEYS do
  local old, new = redis.call('GETRANGE', KEYS[i], 0, 22), ARGV[i + 2]
  if old == '' or not is_newer(old, new) then redis.call('SET', KEYS[i], new, 'PX', ARGV[1]) end
end
