-- Stores overlay entries. Keeps a stored entry of the same model version that is newer by (as_of, computed_at), and
-- a note of outdate.lua if the new entry may have been computed before the features changed.
-- KEYS: schemas, then the overlay keys   ARGV: milliseconds to keep, schema digest, schema ('' if it is stored), then the entries
-- An entry starts with computed_at (double), the version's lower 32 bits, origin (1 byte), digest (6 bytes), and as_of
-- (uint32). If 128 is added to the origin, the version's upper 32 bits stand before as_of.
if ARGV[3] ~= '' then redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[3]) end

local OUTDATED, REALTIME, SINCE_CHANGE, WIDE = string.rep('\0', 6), 1, 3, 128

local function read(entry)
  local origin, upper, at = string.byte(entry, 13), '', 20
  if origin >= WIDE then origin, upper, at = origin - WIDE, string.sub(entry, 20, 23), 24 end
  return {
    computed_at = struct.unpack('<d', entry),
    -- as bytes: Lua's numbers have only 53 bits
    version = string.sub(entry, 9, 12) .. upper,
    origin = origin,
    is_note = string.sub(entry, 14, 19) == OUTDATED,
    as_of = struct.unpack('<I4', entry, at),
  }
end

local function is_newer(old, new)
  if old.is_note then
    -- an answer on demand used the features stored by then; a run's table may lack the change
    if new.origin == REALTIME then return old.computed_at > new.computed_at end
    return old.as_of > new.as_of
  end
  if old.version ~= new.version then return false end
  if old.as_of ~= new.as_of then return old.as_of > new.as_of end
  return old.computed_at > new.computed_at
end

for i = 2, #KEYS do
  local stored, entry = redis.call('GETRANGE', KEYS[i], 0, 26), ARGV[i + 2]
  local old, new = stored ~= '' and read(stored), read(entry)
  if not old or not is_newer(old, new) then
    if old and (old.is_note or old.origin == SINCE_CHANGE) and new.origin == REALTIME then
      local origin = string.char(string.byte(entry, 13) - REALTIME + SINCE_CHANGE)
      entry = string.sub(entry, 1, 12) .. origin .. string.sub(entry, 14)
    end
    redis.call('SET', KEYS[i], entry, 'PX', ARGV[1])
  end
end
