-- Restores the record of an ended run that Redis has lost, from a process's memory of it.
-- KEYS: run, active_run, runs   ARGV: run id, seconds kept, created at (epoch s), field, value, …
-- Returns 1, or 0 if the record exists after all
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'finished_at', string.format('%d.%06d', time[1], time[2]), unpack(ARGV, 4))
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
return 1
