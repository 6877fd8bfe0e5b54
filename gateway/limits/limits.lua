-- The limits of one key, atomically. The same decisions as in local.py, in the same whole numbers.
--
-- KEYS  1 state (hash)   r, ra, t, ta: levels of requests and tokens, and when; ht, hb: tokens and budget held; s:PERIOD: spent
--       2 leases (sorted set)   running requests, by the moment at which they count as lost
--       3 held (hash)   lease -> "tokens budget"
-- ARGV  1 operation, 2 now (microseconds; 0: this server's clock), then
--   admit    3 lease, 4 requests/min, 5 tokens/min, 6 concurrency, 7 budget (each 0: no limit), 8 period, 9 spent at least,
--            10 tokens asked for, 11 budget asked for, 12 microseconds that a lease lasts
--            -> reason ("" if admitted), wait, level of requests, level of tokens, tokens held
--   settle   3 lease, 4 tokens/min, 5 tokens spent, 6 budget spent, 7 period
--   renew    3 microseconds that a lease lasts, 4... leases
local UNIT, FULL, FREE, IDLE = 60000000, 9000000000000000, 1000000, 172800
local op, now = ARGV[1], tonumber(ARGV[2])
if now == 0 then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function text(number) return string.format('%.0f', number) end
local function get(name) return tonumber(redis.call('HGET', KEYS[1], name) or '0') end
local function set(...) redis.call('HSET', KEYS[1], ...) end

local function drained(level, at, limit)
  if limit == 0 then return 0 end
  return math.max(0, get(level) - limit * math.max(0, now - get(at)))
end

-- Give back what a lease holds. Returns its tokens.
local function release(lease)
  local held = redis.call('HGET', KEYS[3], lease)
  redis.call('ZREM', KEYS[2], lease)  -- also where a full server has thrown away what it held: else it would run for ever
  if not held then return 0 end
  local tokens, budget = held:match('^(%d+) (%d+)$')
  redis.call('HDEL', KEYS[3], lease)
  set('ht', text(math.max(0, get('ht') - tonumber(tokens))), 'hb', text(math.max(0, get('hb') - tonumber(budget))))
  return tonumber(tokens)
end

local function wait(level, held, amount, limit)
  local over = level + (held + amount - limit) * UNIT
  if over <= 0 then return 0 end
  local drain = math.ceil(math.min(over, level) / limit)
  if over <= level then return drain end
  return math.max(FREE, drain)
end

local function keep()
  for i = 1, 3 do redis.call('EXPIRE', KEYS[i], IDLE) end
end

if op == 'admit' then
  local lease, requests, tokens = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
  local concurrency, budget, period = tonumber(ARGV[6]), tonumber(ARGV[7]), 's:' .. ARGV[8]
  local asked, money = tonumber(ARGV[10]), tonumber(ARGV[11])
  local r, t = drained('r', 'ra', requests), drained('t', 'ta', tokens)
  -- Those of processes that ended without a word are charged what they held, in tokens.
  for _, lost in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', text(now), 'LIMIT', 0, 100)) do
    t = math.min(FULL, t + release(lost) * UNIT)
  end
  local spent = math.max(get(period), tonumber(ARGV[9]))
  local ht, hb, reason, pause = get('ht'), get('hb'), '', 0
  if redis.call('EXISTS', KEYS[2]) == 0 then ht, hb = 0, 0 end -- nothing runs, so nothing is held, whatever became of its leases
  if budget > 0 and spent >= budget then
    reason = 'budget'
  elseif tokens > 0 and asked > tokens then
    reason = 'too_large'
  else
    if requests > 0 then pause = wait(r, 0, 1, requests) end
    if pause > 0 then
      reason = 'requests'
    else
      if tokens > 0 then pause = wait(t, ht, asked, tokens) end
      if pause > 0 then
        reason = 'tokens'
      elseif concurrency > 0 and redis.call('ZCARD', KEYS[2]) >= concurrency then
        reason, pause = 'concurrency', FREE
      elseif budget > 0 and spent + hb >= budget then
        reason, pause = 'budget_held', FREE
      end
    end
  end
  if reason == '' then
    r, ht = math.min(FULL, r + UNIT), ht + asked
    redis.call('ZADD', KEYS[2], text(now + tonumber(ARGV[12])), lease)
    redis.call('HSET', KEYS[3], lease, text(asked) .. ' ' .. text(money))
    set('ht', text(ht), 'hb', text(hb + money))
  end
  set('r', text(r), 'ra', text(now), 't', text(t), 'ta', text(now))
  if budget > 0 then set(period, text(spent)) end
  keep()
  return {reason, text(pause), text(r), text(t), text(ht)}
end

if op == 'settle' then
  release(ARGV[3])
  local limit = tonumber(ARGV[4])
  set('t', text(math.min(FULL, drained('t', 'ta', limit) + tonumber(ARGV[5]) * UNIT)), 'ta', text(now))
  if ARGV[7] ~= '-' then
    local period = 's:' .. ARGV[7]
    set(period, text(get(period) + tonumber(ARGV[6])))
  end
  keep()
  return 1
end

if op == 'renew' then
  local held = 0
  for i = 4, #ARGV do
    held = held + redis.call('ZADD', KEYS[2], 'XX', 'CH', text(now + tonumber(ARGV[3])), ARGV[i])
  end
  keep()
  return held
end

return redis.error_reply('unknown operation')
