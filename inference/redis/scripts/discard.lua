-- Marks a generation failed or cancelled. Does nothing if it is being collected or gone.
-- KEYS: generation   ARGV: the new state
-- Returns 'ok', or the state that forbids it.
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'current' or state == 'previous' then return state end
if state and state ~= 'collecting' then
  redis.call('PERSIST', KEYS[1]) -- a full Redis lets a script go on if its first write needs no memory
  redis.call('HSET', KEYS[1], 'state', ARGV[1])
end
return 'ok'
