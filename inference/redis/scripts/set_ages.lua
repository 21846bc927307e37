-- Replaces the as_of of rows in a bucket. May run twice.
-- KEYS: the bucket   ARGV: the rows' as_of (4 bytes each, as in a row), the fields
-- Returns how many of the rows there were.
local found = 0
for i = 2, #ARGV do
  local row = redis.call('HGET', KEYS[1], ARGV[i])
  if row then
    redis.call('HSET', KEYS[1], ARGV[i], string.sub(ARGV[1], 4 * i - 7, 4 * i - 4) .. string.sub(row, 5))
    found = found + 1
  end
end
return found
