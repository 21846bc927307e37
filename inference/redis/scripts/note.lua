-- Sets fields of a run's record, in any state, if the record still exists.
-- KEYS: run   ARGV: field, value, …
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], unpack(ARGV)) end
return 1
