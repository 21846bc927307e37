-- Records a chunk's result, once, and only from the worker that holds the chunk.
-- KEYS: run, claims, done, sent, bins
-- ARGV: chunk, token, result (JSON), rows, quarantined, histogram (packed; '' for none)
-- Returns {1, chunks done, chunks in all, in flight, next chunk to send}, or {0}
if redis.call('HGET', KEYS[1], 'state') ~= 'running' then return {0} end
-- a finished chunk has no holder, and nobody can claim it again
local token = string.match(redis.call('HGET', KEYS[2], ARGV[1]) or '', '^%d+ (%S+) %d+$')
if token ~= ARGV[2] then return {0} end
local time = redis.call('TIME')
redis.call('HSET', KEYS[3], ARGV[1], ARGV[3])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('HSET', KEYS[1], 'moved_at', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
local done = redis.call('HINCRBY', KEYS[1], 'chunks_done', 1)
redis.call('HINCRBY', KEYS[1], 'rows_done', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'rows_quarantined', ARGV[5])
-- whole: to add up a thousand counts here keeps Redis busy for two milliseconds
if ARGV[6] ~= '' then redis.call('HSET', KEYS[5], ARGV[1], ARGV[6]) end
return {
  1, done, tonumber(redis.call('HGET', KEYS[1], 'chunks_total')), redis.call('ZCARD', KEYS[4]),
  tonumber(redis.call('HGET', KEYS[1], 'next_chunk') or 0),
}
