-- Takes a generation out of service for good: compare-and-set to collecting.
-- KEYS: generation
-- Returns {'ok', manifest, instant the second sweep is due or false}, {'gone'}, or {the state that forbids it}.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'gone'} end
if state == 'current' or state == 'previous' or state == 'loading' then return {state} end
redis.call('PERSIST', KEYS[1]) -- a script that has begun with a write that needs no memory may go on when Redis is full
redis.call('HSET', KEYS[1], 'state', 'collecting')
return {'ok', redis.call('HGET', KEYS[1], 'manifest'), redis.call('HGET', KEYS[1], 'sweep_due_at')}
