-- Replaces the value of a field if it is still the expected one. KEYS: the hash. ARGV: field, expected, new value.
-- Returns 1 if it was replaced, else 0.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
