-- Extends a worker's lease, if nobody else has claimed the chunk and the run goes on.
-- A negative length gives the chunk back: others can claim it -length ms from now.
-- KEYS: run, claims   ARGV: chunk, token, lease ms, error ('' for none)
-- Returns 1, or 0 if the claim is lost
if redis.call('HGET', KEYS[1], 'state') ~= 'running' then return 0 end
local attempts, token = string.match(redis.call('HGET', KEYS[2], ARGV[1]) or '', '^(%d+) (%S+) %d+$')
if token ~= ARGV[2] then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local length = tonumber(ARGV[3])
if length < 0 then token, length = '-', -length end
redis.call('HSET', KEYS[2], ARGV[1], string.format('%d %s %.0f', attempts, token, now + length))
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'last_error', ARGV[4]) end
return 1
