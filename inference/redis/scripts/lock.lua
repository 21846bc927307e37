-- Takes a lock that expires by itself. Works when Redis is out of memory: the process that frees memory needs it.
-- KEYS: lock   ARGV: token, milliseconds
-- Returns 1, or 0 if the lock is taken
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('DEL', KEYS[1]) -- a full Redis lets a script go on if its first write needs no memory
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
