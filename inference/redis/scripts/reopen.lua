-- Resumes a run that was over, unless its model has another run in progress. Finished chunks stay finished.
-- KEYS: run, active_run, claims, done, sent, bins, histogram
-- ARGV: run id, new state, expected states (' a b '), field, value, …
-- Returns {'ok' | 'active' | 'state', detail}
local state = redis.call('HGET', KEYS[1], 'state')
if not state or not string.find(ARGV[3], ' ' .. state .. ' ', 1, true) then return {'state', state or ''} end
local active = redis.call('GET', KEYS[2])
if active and active ~= ARGV[1] then return {'active', active} end
local time = redis.call('TIME')
redis.call('SET', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3], KEYS[5])
local now = string.format('%d.%06d', time[1], time[2])
redis.call('HDEL', KEYS[1], 'error', 'finished_at', 'scored_at')
redis.call('HSET', KEYS[1], 'resumed_at', now, 'rows_before', redis.call('HGET', KEYS[1], 'rows_done') or 0)
if ARGV[2] == 'publishing' then redis.call('HSET', KEYS[1], 'scored_at', now) end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'next_chunk', 0, 'resends', 0, 'moved_at', time[1] * 1000)
if #ARGV > 3 then redis.call('HSET', KEYS[1], unpack(ARGV, 4)) end
redis.call('PERSIST', KEYS[1])
redis.call('PERSIST', KEYS[4])
redis.call('PERSIST', KEYS[6])
redis.call('PERSIST', KEYS[7])
return {'ok', ARGV[2]}
