-- Ends a job that is not over. Returns its state afterwards, or nil if the job is gone.
-- KEYS: job, inputs, parts. ARGV: final state, error (JSON or empty), expected `changed_at` (empty: any).
local state = redis.call('HGET', KEYS[1], 'state')
if not state or (state ~= 'queued' and state ~= 'running') then return state end
if ARGV[3] ~= '' and redis.call('HGET', KEYS[1], 'changed_at') ~= ARGV[3] then return state end
redis.call('HSET', KEYS[1], 'state', ARGV[1], 'error', ARGV[2], 'changed_at', redis.call('TIME')[1])
redis.call('DEL', KEYS[2], KEYS[3])
return ARGV[1]
