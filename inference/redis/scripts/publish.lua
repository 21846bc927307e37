-- Makes a generation current and the current one previous. The former previous one becomes collectable.
-- KEYS: pointer, generation, the run record to check its state (if ARGV[3] is not ''); then what a cluster has to know:
-- the current and the previous generation
-- ARGV: number, generation prefix, the run's required state, the generation that must be current ('' for any)
-- Returns 'ok', 'gone', 'run' (the run is in another state), 'moved' (another generation is current), or the
-- generation's state if that forbids it.
local pointer, generation, run = KEYS[1], KEYS[2], KEYS[3]
local number, prefix, run_state, expected = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local current = redis.call('HGET', pointer, 'current')
if current == number then return 'ok' end

local state = redis.call('HGET', generation, 'state')
if not state then return 'gone' end
if run_state ~= '' and redis.call('HGET', run, 'state') ~= run_state then return 'run' end
if state ~= 'loading' then return state end
if expected ~= '' and current ~= expected then return 'moved' end

local superseded = redis.call('HGET', pointer, 'previous')
if superseded then redis.call('HSET', prefix .. superseded, 'state', 'collecting') end
if current then
  redis.call('HSET', pointer, 'previous', current)
  redis.call('HSET', prefix .. current, 'state', 'previous')
end
redis.call('HSET', pointer, 'current', number)
redis.call('HSET', generation, 'state', 'current')
return 'ok'
