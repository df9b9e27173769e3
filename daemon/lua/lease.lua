-- The lease of a bank: who may write, in which term, until when. Times are Redis' own; no other clock is asked.
--
-- KEYS[1] lease
-- ARGV[1] acquire | renew | release   ARGV[2] epoch (renew, release)   ARGV[3] owner
-- ARGV[4] milliseconds it shall last   ARGV[5] (acquire) "1" takes it from whoever holds it
--
-- acquire returns {epoch, 0, owner} when taken, {0, milliseconds left, holder} while somebody else holds it;
-- renew and release return {epoch, 0, owner}.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local held = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'expires_ms')
local epoch, owner, left = tonumber(held[1] or '0'), held[2], tonumber(held[3] or '0') - now

if ARGV[1] == 'acquire' then
  if left > 0 and owner ~= ARGV[3] and ARGV[5] ~= '1' then
    return { 0, left, owner }
  end
  epoch = epoch + 1
  -- `commit` names what a first commit of this term has to follow; see commit.lua.
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'owner', ARGV[3], 'since', clock[1], 'expires_ms', now + ARGV[4],
    'commit', epoch .. ':' .. ARGV[3] .. ':')
  return { epoch, 0, ARGV[3] }
end

if epoch > tonumber(ARGV[2]) then
  return redis.error_reply('FENCED epoch ' .. epoch .. ' has taken over from ' .. ARGV[2])
end
if epoch < tonumber(ARGV[2]) or owner ~= ARGV[3] then
  return redis.error_reply('REWOUND the lease here is of epoch ' .. epoch .. ', not ' .. ARGV[2])
end
redis.call('HSET', KEYS[1], 'expires_ms', ARGV[1] == 'release' and 0 or now + ARGV[4])
return { epoch, 0, owner }
