-- Which commands of a commit this user may not run. Redis takes back nothing of a script that fails halfway through, so
-- a right that is missing has to be found out before the first commit, not in it.
--
-- KEYS[1] a key of the bank that holds nothing; afterwards it holds nothing again
--
-- Returns the names of the commands that are refused.
local key = KEYS[1]
local trials = {
  { 'DEL', key },
  { 'SET', key, '' },
  { 'GET', key },
  { 'DEL', key },
  { 'INCR', key },
  { 'DEL', key },
  { 'HSET', key, 'field', '' },
  { 'HMGET', key, 'field' },
  { 'HDEL', key, 'field' },
  { 'ZADD', key, 0, 'member' },
  { 'ZREM', key, 'member' },
  { 'XADD', key, 'MAXLEN', '~', 1, '*', 'field', '' },
  { 'DEL', key },
  { 'TIME' },
}
local refused = {}
for _, command in ipairs(trials) do
  local reply = redis.pcall(unpack(command))
  local problem = type(reply) == 'table' and reply['err'] or ''
  if string.find(problem, "can't run", 1, true) or string.find(problem, 'NOPERM', 1, true)
    or string.find(problem, 'ACL failure', 1, true) then
    refused[#refused + 1] = command[1]
    if command[1] == 'DEL' then
      return refused  -- what is tried out next could not be taken away again
    end
  end
end
return refused
