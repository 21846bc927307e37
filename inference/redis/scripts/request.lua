-- Opens a run, unless its model has one in progress or its slot already had one.
-- KEYS: active_run, slots, runs, run   ARGV: run id, slot ('' for none), runs kept, slots kept, field, value, …
-- Returns {'ok' | 'active' | 'slot', run id}
local active = redis.call('GET', KEYS[1])
local served = ARGV[2] ~= '' and redis.call('HGET', KEYS[2], ARGV[2])
if served then return {'slot', served} end
if active then return {'active', active} end
local time = redis.call('TIME')
local created_at = string.format('%d.%06d', time[1], time[2])
redis.call('HSET', KEYS[4], 'run_id', ARGV[1], 'state', 'queued', 'created_at', created_at, unpack(ARGV, 5))
redis.call('SET', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[3], created_at, ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - tonumber(ARGV[3]))
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[1])
  local slots = redis.call('HKEYS', KEYS[2])
  table.sort(slots)  -- slots are ISO instants, so this is their order in time
  for i = 1, #slots - tonumber(ARGV[4]) do redis.call('HDEL', KEYS[2], slots[i]) end
end
return {'ok', ARGV[1]}
