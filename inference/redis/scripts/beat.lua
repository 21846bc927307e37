-- Stores a worker's record, and the time of its beat for each of its queues.
-- KEYS: the worker's record, then each of its queues. ARGV: record, seconds to keep it, name, seconds to remember it.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
for i = 2, #KEYS do
  redis.call('ZADD', KEYS[i], string.format('%.3f', now), ARGV[3])
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now - ARGV[4])
  redis.call('EXPIRE', KEYS[i], ARGV[4])
end
