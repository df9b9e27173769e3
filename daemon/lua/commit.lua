-- One commit: everything or nothing, at most once, and only by the newest trainer.
--
-- KEYS[1] lease   KEYS[2] version   KEYS[3] index   KEYS[4] events   KEYS[5..] what the writes below name
-- ARGV[1] epoch of the writer
-- ARGV[2] id of this commit; a client that lost the reply sends the same id again
-- ARGV[3] id of the commit before it; another one means that this Redis has lost some
-- ARGV[4] plan, JSON: writes  [[command, key number, value number, ...], ...]   (numbers count KEYS and ARGV from 1)
--                     changed [mask id, ...]   removed [mask id, ...]
--                     events  [[field, value, ...], ...]   events_kept number
-- ARGV[5..] values
--
-- Returns the bank's version after the commit. No key name is built here: they all come from redis_keys.py.
local lease = redis.call('HMGET', KEYS[1], 'epoch', 'commit')
local epoch = tonumber(lease[1] or '0')
if epoch > tonumber(ARGV[1]) then
  return redis.error_reply('FENCED epoch ' .. lease[1] .. ' has taken over from ' .. ARGV[1])
end
if lease[2] == ARGV[2] then
  return tonumber(redis.call('GET', KEYS[2]))
end
if epoch < tonumber(ARGV[1]) or lease[2] ~= ARGV[3] then
  return redis.error_reply('REWOUND the newest commit here is not ' .. ARGV[3])
end

local plan = cjson.decode(ARGV[4])
local version = redis.call('INCR', KEYS[2])
for _, write in ipairs(plan.writes) do
  local command = { write[1], KEYS[write[2]] }
  for i = 3, #write do
    command[i] = ARGV[write[i]]
  end
  redis.call(unpack(command))
end
for _, id in ipairs(plan.changed) do
  redis.call('ZADD', KEYS[3], version, id)
end
for _, id in ipairs(plan.removed) do
  redis.call('ZREM', KEYS[3], id)
end
for _, event in ipairs(plan.events) do
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', plan.events_kept, '*', 'version', version, unpack(event))
end
-- Last of all: where this version is missing, a restart of Redis has torn the commit (redis_restart.py).
redis.call('HSET', KEYS[1], 'commit', ARGV[2], 'version', version)
return version
