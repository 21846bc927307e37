-- Makes a generation collectable after its rows were moved into the overlay.
-- KEYS: generation
-- Returns 'ok', 'gone', or the state that forbids it.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'gone' end
if state ~= 'loading' and state ~= 'collecting' then return state end
redis.call('HSET', KEYS[1], 'state', 'collecting')
return 'ok'
