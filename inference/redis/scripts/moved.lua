-- Ends a generation whose rows were moved into the overlay: it can be collected.
-- KEYS: generation
-- Returns 'ok', 'gone', or the state that forbids it.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'gone' end
if state ~= 'loading' and state ~= 'collecting' then return state end
redis.call('HSET', KEYS[1], 'state', 'collecting')
return 'ok'
