-- Sets bits of a day's filter of entities, and makes the filter if there is none. Returns its size in bytes; if that is
-- not the caller's, sets nothing.
-- KEYS: filter   ARGV: the caller's size, seconds to keep, places of bits (uint32 each)
local size, places = redis.call('STRLEN', KEYS[1]), ARGV[3]
if size == 0 then
  size = tonumber(ARGV[1])
  redis.call('SETBIT', KEYS[1], size * 8 - 1, 0)
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
if size == tonumber(ARGV[1]) then
  for i = 1, #places, 4 do redis.call('SETBIT', KEYS[1], struct.unpack('<I4', places, i), 1) end
end
return size
