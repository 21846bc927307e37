-- Replaces the beginning of a day's sample of accesses by fewer, under a smaller threshold, unless another process has
-- done so. Keeps what was appended meanwhile. Returns whether it did.
-- KEYS: the day's hash, its sample   ARGV: number of cuts so far, length of the beginning, new beginning, threshold,
-- seconds to keep
if (redis.call('HGET', KEYS[1], 'cuts') or '0') ~= ARGV[1] then return 0 end
local appended = redis.call('GETRANGE', KEYS[2], ARGV[2], -1)
redis.call('SET', KEYS[2], ARGV[3] .. appended, 'EX', ARGV[5])
redis.call('HSET', KEYS[1], 'threshold', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'cuts', 1)
return 1
