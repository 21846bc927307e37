-- Stores overlay entries of features, each only if the stored entry is still the expected one.
-- KEYS: schemas, then the overlay keys
-- ARGV: milliseconds to keep, schema digest, schema ('' if it is stored), then for each key the entry expected ('' for none) and the new one
-- Returns 1 for each key that was stored, 0 for each that was not.
if ARGV[3] ~= '' then redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[3]) end

local done = {}
for i = 2, #KEYS do
  local expected, new = ARGV[2 * i], ARGV[2 * i + 1]
  if (redis.call('GET', KEYS[i]) or '') == expected then
    redis.call('SET', KEYS[i], new, 'PX', ARGV[1])
    done[i - 1] = 1
  else
    done[i - 1] = 0
  end
end
return done
