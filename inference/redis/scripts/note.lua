-- Sets fields of a run's record, whatever its state, if it still exists.
-- KEYS: run   ARGV: field, value, …
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], unpack(ARGV)) end
return 1
