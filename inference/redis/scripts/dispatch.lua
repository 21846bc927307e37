-- Chooses the chunks to send now: lost chunks again, and new chunks up to the limit in flight.
-- KEYS: run, claims, done, sent, plan   ARGV: max in flight, quiet ms, max attempts, seconds that the plan is kept
-- Returns {chunks to send, exhausted chunk ('' for none)}
--
-- A chunk is lost if its lease ran out after its last sending. The dead worker may have held unclaimed messages too,
-- so unclaimed chunks are sent again with it; a claim refuses duplicates. Without a live lease and without news,
-- unclaimed chunks are sent again after a silence that doubles each time (there may be no worker at all).
if redis.call('HGET', KEYS[1], 'state') ~= 'running' then return {{}, ''} end
redis.call('EXPIRE', KEYS[5], ARGV[4])  -- renewed as long as the run goes on
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local send, waiting, live = {}, {}, 0
local newest = tonumber(redis.call('HGET', KEYS[1], 'moved_at') or 0)
local sent = redis.call('ZRANGE', KEYS[4], 0, -1, 'WITHSCORES')
for i = 1, #sent, 2 do
  local chunk, sent_at = sent[i], tonumber(sent[i + 1])
  local attempts, lease = string.match(redis.call('HGET', KEYS[2], chunk) or '0 - 0', '^(%d+) %S+ (%d+)$')
  attempts, lease = tonumber(attempts), tonumber(lease)
  if lease > now then
    live = live + 1
  elseif lease > 0 and sent_at <= lease then
    if attempts >= tonumber(ARGV[3]) then return {{}, chunk} end
    send[#send + 1] = chunk
  else
    waiting[#waiting + 1] = chunk
    newest = math.max(newest, sent_at)
  end
end
local resends = tonumber(redis.call('HGET', KEYS[1], 'resends') or 0)
local silent = live == 0 and #waiting > 0 and now - newest > tonumber(ARGV[2]) * 2 ^ math.min(resends, 7)
if #send > 0 or silent then
  for i = 1, #waiting do send[#send + 1] = waiting[i] end
end
if silent then redis.call('HSET', KEYS[1], 'resends', resends + 1) end
local total = tonumber(redis.call('HGET', KEYS[1], 'chunks_total') or 0)
local following = tonumber(redis.call('HGET', KEYS[1], 'next_chunk') or 0)
local free = tonumber(ARGV[1]) - #sent / 2
while free > 0 and following < total do
  if redis.call('HEXISTS', KEYS[3], following) == 0 then
    send[#send + 1] = tostring(following)
    free = free - 1
  end
  following = following + 1
end
redis.call('HSET', KEYS[1], 'next_chunk', following)
for i = 1, #send do redis.call('ZADD', KEYS[4], now, send[i]) end
return {send, ''}
