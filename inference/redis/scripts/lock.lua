-- Takes a lock that expires by itself, also when Redis is out of memory: whoever frees memory must hold it.
-- KEYS: lock   ARGV: token, milliseconds
-- Returns 1, or 0 when somebody has it
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('DEL', KEYS[1]) -- a script that has begun with a write that needs no memory may go on
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
