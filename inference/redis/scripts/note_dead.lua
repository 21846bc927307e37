-- Keeps messages that cannot be applied, each once, and counts them with the others of their batch.
-- KEYS: the stream of dead letters, the sorted set of their ids, the counts
-- ARGV: most letters, milliseconds to keep, then for each letter its id and its fields as JSON
-- Returns how many of them are new.
local most, keep_ms = tonumber(ARGV[1]), ARGV[2]
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000

local added = 0
for i = 3, #ARGV, 2 do
  if redis.call('ZADD', KEYS[2], 'NX', now, ARGV[i]) == 1 then
    redis.call('XADD', KEYS[1], 'MAXLEN', most, '*', 'letter', ARGV[i + 1])
    added = added + 1
  end
end
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -most - 1)
redis.call('PEXPIRE', KEYS[1], keep_ms)
redis.call('PEXPIRE', KEYS[2], keep_ms)
if added > 0 then redis.call('HINCRBY', KEYS[3], 'dead', added) end
return added
