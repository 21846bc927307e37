-- Replaces the beginning of a day's visits by fewer, and sets a field of the day, unless another process has cut them
-- since. Keeps what was appended meanwhile. Returns whether it did.
-- KEYS: the day's hash, its visits   ARGV: field that counts cuts, its value, length of the beginning, new beginning,
-- seconds to keep, field, value
if (redis.call('HGET', KEYS[1], ARGV[1]) or '0') ~= ARGV[2] then return 0 end
local appended = redis.call('GETRANGE', KEYS[2], ARGV[3], -1)
redis.call('SET', KEYS[2], ARGV[4] .. appended, 'EX', ARGV[5])
redis.call('HSET', KEYS[1], ARGV[6], ARGV[7])
redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
return 1
