-- Sets a generation's state to collecting, for good, unless it is in use.
-- KEYS: generation
-- Returns {'ok', manifest, time of the second sweep or false}, {'gone'}, or {the state that forbids it}.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'gone'} end
if state == 'current' or state == 'previous' or state == 'loading' then return {state} end
redis.call('PERSIST', KEYS[1]) -- a full Redis lets a script go on if its first write needs no memory
redis.call('HSET', KEYS[1], 'state', 'collecting')
return {'ok', redis.call('HGET', KEYS[1], 'manifest'), redis.call('HGET', KEYS[1], 'sweep_due_at')}
