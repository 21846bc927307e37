-- Gives a chunk to one worker for one lease. Counts the attempt now, since a killed worker reports nothing.
-- KEYS: run, claims, done   ARGV: chunk, token, lease ms, max attempts
-- Returns {attempt, ''}, or {0, why not}
if redis.call('HGET', KEYS[1], 'state') ~= 'running' then return {0, 'the run is not running'} end
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 1 then return {0, 'the chunk is finished'} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local attempts, lease = string.match(redis.call('HGET', KEYS[2], ARGV[1]) or '0 - 0', '^(%d+) %S+ (%d+)$')
attempts = tonumber(attempts)
if tonumber(lease) > now then return {0, 'another worker holds the chunk'} end
if attempts >= tonumber(ARGV[4]) then return {0, 'no attempt is left'} end
redis.call('HSET', KEYS[2], ARGV[1], string.format('%d %s %.0f', attempts + 1, ARGV[2], now + ARGV[3]))
redis.call('HSET', KEYS[1], 'moved_at', string.format('%.0f', now), 'resends', 0)
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
return {attempts + 1, ''}
