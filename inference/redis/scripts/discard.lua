-- Marks a generation failed or cancelled; one that is being collected or is gone stays so.
-- KEYS: generation   ARGV: the new state
-- Returns 'ok', or the state that forbids it.
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'current' or state == 'previous' then return state end
if state and state ~= 'collecting' then
  redis.call('PERSIST', KEYS[1]) -- a script that has begun with a write that needs no memory may go on when Redis is full
  redis.call('HSET', KEYS[1], 'state', ARGV[1])
end
return 'ok'
