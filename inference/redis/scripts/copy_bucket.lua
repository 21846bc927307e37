-- Copies a bucket into another generation. May run twice, before anybody writes into the copy.
-- KEYS: the bucket, its copy   ARGV: when Redis forgets the copy (epoch s), the as_of of all rows ('' to keep theirs)
-- Returns 1, or 0 if there is no such bucket.
local PAIRS = 1000 -- values in one HSET; Lua's stack takes 8000
if ARGV[2] == '' then
  if redis.call('COPY', KEYS[1], KEYS[2], 'REPLACE') == 0 then return 0 end
else
  local rows = redis.call('HGETALL', KEYS[1])
  if #rows == 0 then return 0 end
  -- a row starts with its as_of, four bytes
  for i = 2, #rows, 2 do rows[i] = ARGV[2] .. string.sub(rows[i], 5) end
  redis.call('DEL', KEYS[2])
  for i = 1, #rows, PAIRS do redis.call('HSET', KEYS[2], unpack(rows, i, math.min(i + PAIRS - 1, #rows))) end
end
redis.call('EXPIREAT', KEYS[2], ARGV[1])
return 1
