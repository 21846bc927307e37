-- Moves a run from an expected state to another. A final state also frees the model and starts the record's expiry.
-- KEYS: run, active_run, claims, done, sent, bins, histogram
-- ARGV: run id, new state, expected states (' a b '), '1' if the new state is final, seconds kept, field, value, …
-- Returns {1, new state}, or {0, the run's state ('' if there is no run)}
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {0, ''} end
if not string.find(ARGV[3], ' ' .. state .. ' ', 1, true) then return {0, state} end
local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
if ARGV[4] == '1' then
  -- first: a full Redis lets a script go on if its first write needs no memory
  for i = 3, 7 do redis.call('EXPIRE', KEYS[i], ARGV[5]) end
  redis.call('EXPIRE', KEYS[1], ARGV[5])
  if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
  redis.call('HSET', KEYS[1], 'finished_at', now)
end
redis.call('HSET', KEYS[1], 'state', ARGV[2])
if #ARGV > 5 then redis.call('HSET', KEYS[1], unpack(ARGV, 6)) end
if ARGV[2] == 'running' then
  redis.call('HSETNX', KEYS[1], 'started_at', now)
  redis.call('HSET', KEYS[1], 'moved_at', time[1] * 1000)
elseif ARGV[2] == 'publishing' then
  redis.call('HSET', KEYS[1], 'scored_at', now)
end
return {1, ARGV[2]}
