-- Counts the start of a part, which may be the start of the job.
-- KEYS: job. ARGV: part number. Returns the state (nil if the job is gone) and how often the part was begun.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {false, 0} end
if state == 'queued' then
  state = 'running'
  redis.call('HSET', KEYS[1], 'state', state, 'changed_at', redis.call('TIME')[1])
end
return {state, redis.call('HINCRBY', KEYS[1], 'begun:' .. ARGV[1], 1)}
