-- Stores the result of a part. KEYS: job, inputs, parts, bytes of all jobs. ARGV: part number, its result, seconds to
-- keep, bytes that were reserved for the result, most bytes of all jobs, most bytes of one job's results.
-- Returns 1 if it is stored, 0 if the job is over, -1 if all jobs take too many bytes, -2 if this job does.
if redis.call('HGET', KEYS[1], 'state') ~= 'running' then return 0 end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then return 1 end
local minute = redis.call('HGET', KEYS[1], 'minute')
local more = #ARGV[2] - tonumber(ARGV[4])
local held = 0
local room = redis.call('HGETALL', KEYS[4])
local forgotten = math.floor(redis.call('TIME')[1] / 60) - ARGV[3] / 60
for at = 1, #room, 2 do
  if tonumber(room[at]) >= forgotten then held = held + tonumber(room[at + 1]) end
end
if more > 0 and held + more > tonumber(ARGV[5]) then return -1 end
if redis.call('HINCRBY', KEYS[1], 'result_bytes', #ARGV[2]) > tonumber(ARGV[6]) then return -2 end
more = more - redis.call('HSTRLEN', KEYS[2], ARGV[1])
if minute and redis.call('HEXISTS', KEYS[4], minute) == 1 then redis.call('HINCRBY', KEYS[4], minute, more) end
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], 'begun:' .. ARGV[1])
redis.call('HSET', KEYS[1], 'changed_at', redis.call('TIME')[1])
if redis.call('HLEN', KEYS[3]) == tonumber(redis.call('HGET', KEYS[1], 'parts')) then
  redis.call('HSET', KEYS[1], 'state', 'done')
end
for number = 1, 3 do redis.call('EXPIRE', KEYS[number], ARGV[3]) end
return 1
