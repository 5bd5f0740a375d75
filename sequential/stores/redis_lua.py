"""The scripts of `sequential.stores.redis`: each is all that a method does, and atomic.

Redis does not roll back a script that fails in its midst.  So each first checks everything, then writes; out of memory
and without the right to write a server refuses the first write of a script or none.  What could fail comes before the
record, and before anything is lost: the user may lack a single command, or another program's key be in the place of an
index.

All that is short comes as one argument, with a NUL between any two values, and what may be large as another: a driver
takes longer to send a value of its own than a script to cut one off.  What is `None` is empty there and in the record.

A driver that waits no longer for an answer asks again, and a network or a server that was held up may act on the first
request after the second, and after what came of it.  Most are refused by then for their token; the nonces of the others
stay void for some minutes.
"""

from __future__ import annotations

from ..storage import CLOSED, Record

_CHANGING = Record._fields[6:]
_GIVEN = ("run", "workflow", "version", "first_input", *_CHANGING)

REFUSED, DONE, UNLISTED, NEW = range(4)
"""How a script answers; the last two say that it has done nothing, and what the index must have first."""

FOUND, TAKEN, CREATED = range(3)
"""How a claim ends."""

_PAUSE = 3600
"""Seconds for which a process may stop between two requests of one act."""

_DELAY = 300
"""Seconds by which a request may come late."""


def _cut(*names: str) -> str:
    """Return what gives names to the short values."""
    pattern = "%z".join(["([^%z]*)"] * len(names))
    return f"""
local {", ".join(names)} = string.match(ARGV[1], '^{pattern}$')
assert({names[0]}, 'no text may have a NUL')
"""


def _new(fields: tuple[str, ...]) -> str:
    return " ".join(f"new_{name}" for name in fields)


def _script(text: str) -> str:
    """Return a script, of which the first line names the short values that it has besides those of every script."""
    names, _, body = text.partition("\n")
    return f"{_cut('id', 'offered', 'ttl', *names.split())}{_START}{body}"


def _make_void(name: str, seconds: int) -> str:
    # A server that is full refuses a write that takes memory, but not after one of the same script that takes none.
    return f"redis.call('UNLINK', void .. {name}) redis.call('SET', void .. {name}, '', 'EX', {seconds})"


def _pairs(fields: tuple[str, ...]) -> str:
    return ", ".join(f"'{name}', new_{name}" for name in fields)


# A record is read as two: what is short, and its input, which is empty if it is in the parts that are named last.
_WHOLE = f"""
local function whole(record)
    local fields = redis.call('HMGET', record, {", ".join(f"'{name}'" for name in (*_GIVEN, "parts", "input"))})
    return fields[1] and {{table.concat(fields, '\\0', 1, {len(_GIVEN) + 1}), fields[{len(_GIVEN) + 2}]}}
end
"""

_START = f"""{_WHOLE}
local record, by_time, by_id = KEYS[1], KEYS[3] and KEYS[2], KEYS[3]
local signals, void = record .. ':signals', record .. ':void:'
local run, token, step, status, lease, due, waits, steps, large, living, entry = unpack(redis.call('HMGET', record,
    'run', 'token', 'step', 'status', 'lease', 'due', 'waits', 'steps', 'large', 'until', 'entry'))
local adopts, superfluous, steps, large, entry = false, '', tonumber(steps or 0), large or '', entry or ''
local is_closed = {" or ".join(f"status == '{status}'" for status in sorted(CLOSED))}

local function answer(status, ...)
    if not adopts and offered ~= entry then superfluous = offered end
    if superfluous == '' and select('#', ...) == 0 then return status end
    return {{status, superfluous, ...}}
end

local function rings_at(lease, due)
    return tonumber(lease) ~= 0 and lease or due
end

local function score(one)
    return tonumber(string.match(one, '^[^:]*'))
end

local function is_listed(rings)
    if by_time then return true end
    rings = tonumber(rings) or math.huge
    adopts = offered ~= '' and offered ~= entry and score(offered) <= rings
        and redis.call('EXISTS', void .. offered) == 0
    return adopts or (entry ~= '' and score(entry) <= rings)
end

local function unlisted(status, rings)
    return {{status, tonumber(rings) and rings or 'inf'}}
end

local function list(rings)
    local listed = tonumber(rings_at(lease, due))
    if by_time and rings == '' then
        redis.call('ZREM', by_time, id)
    elseif by_time and not (listed and listed <= tonumber(rings)) then
        redis.call('ZADD', by_time, rings, id)
    elseif adopts then
        if entry ~= '' then {_make_void("entry", _PAUSE)} end
        redis.call('HSET', record, 'entry', offered)
        superfluous = entry
    end
end

local function keep(step, parts)
    redis.call('SET', record .. ':' .. step, ARGV[2])
    steps = math.max(steps, step + 1)
    if large == '' then return end
    local kept = {{}}
    for one in string.gmatch(large, '%S+') do
        if one ~= parts and string.match(one, '^[^:]*') == step then
            redis.call('UNLINK', record .. ':' .. one)
        else
            kept[#kept + 1] = one
        end
    end
    large = table.concat(kept, ' ')
    redis.call('HSET', record, 'large', large)
end

local function drop(parts)
    for step = 0, steps - 1 do
        redis.call('UNLINK', record .. ':' .. step)
    end
    for one in string.gmatch(large, '%S+') do
        if one ~= parts then redis.call('UNLINK', record .. ':' .. one) end
    end
end

local function expire(key, at)
    if at then
        redis.call('PEXPIREAT', key, string.format('%.0f', math.min(at * 1000, 9e15)))
    else
        redis.call('PERSIST', key)
    end
end

local function renew(key)
    if ttl == '' and not living then return end
    local before, expires = tonumber(living or 0), nil
    living = before
    if ttl == '' then  -- it was written with one before
        living = nil
        redis.call('HDEL', record, 'until')
    else
        local wake, lease, due = unpack(redis.call('HMGET', record, 'wake', 'lease', 'due'))
        local now, goes_on = redis.call('TIME'), math.max(tonumber(rings_at(lease, due)) or 0, tonumber(wake) or 0)
        expires = math.max(now[1] + now[2] / 1e6, goes_on) + ttl
        if expires > living or expires + 2 * ttl < living then
            living = expires + ttl
            redis.call('HSET', record, 'until', living)
        end
    end
    if living ~= before then
        for step = 0, steps - 1 do
            expire(record .. ':' .. step, living)
        end
        for one in string.gmatch(large, '%S+') do
            expire(record .. ':' .. one, living)
        end
        expire(signals, living)
    elseif key then  -- it may be new
        expire(key, living)
    end
    expire(record, expires)
end
"""

_CREATE = f"redis.call('HSET', record, 'steps', 0, 'large', kept, 'parts', parts, 'input', ARGV[2], {_pairs(_GIVEN)})"

CLAIM = _script(f"""nonce now create by_run parts {_new(_GIVEN)}
local claimed = redis.call('HGET', record, 'claimed')
local taken = {FOUND}

local function forget_expired(prefix)
    for _, one in ipairs(redis.call('ZRANDMEMBER', by_id, 2)) do
        if redis.call('EXISTS', prefix .. one .. '}}') == 0 and one ~= id then
            redis.call('ZREM', by_id, one)
            redis.call('ZREM', by_time, one)
        end
    end
end

if not token then
    local rings = rings_at(new_lease, new_due)
    local kept = string.match(parts, '^%S*')
    large = kept
    if redis.call('EXISTS', void .. nonce) == 1 then return answer({DONE}, {CREATED}, false) end
    if create == '' then return answer({DONE}, {FOUND}, whole(record)) end
    if not is_listed(rings) or not (by_id or string.find(offered, ':listed', 1, true)) then
        return unlisted({NEW}, rings)  -- what was there may have gone since an entry was offered to the one index
    end
    if parts ~= '' and redis.call('PERSIST', record .. ':' .. large) == 0 then
        return redis.error_reply('the parts of the input are gone')
    end
    if by_id then
        redis.call('ZADD', by_id, 0, id)
        if ttl ~= '' then forget_expired(string.sub(record, 1, -#id - 2)) end
    else
        redis.call('HSET', record, 'listed', offered)
    end
    redis.call('UNLINK', signals)
    list(rings)
    {_CREATE}
    redis.call('HSET', record, 'created', nonce, 'claimed', nonce .. ':' .. new_token)
    renew()
    return answer({DONE}, {CREATED}, false)
elseif claimed == nonce .. ':' .. token then
    taken = {TAKEN}
elseif by_run ~= '' and (by_run ~= run or tonumber(new_step) < tonumber(step)) then
    return answer({DONE}, taken, whole(record))
elseif tonumber(new_lease) ~= 0 and tonumber(lease) <= tonumber(now) and not is_closed then
    if not is_listed(new_lease) then return unlisted({UNLISTED}, new_lease) end
    list(new_lease)
    redis.call('HINCRBY', record, 'token', 1)
    redis.call('HSET', record, 'lease', new_lease, 'claimed', nonce .. ':' .. redis.call('HGET', record, 'token'))
    renew()
    taken = {TAKEN}
end
return answer({DONE}, taken, whole(record))
""")

COMMIT = _script(f"""by_run by_token absent taken at parts {_new(_CHANGING)}
local rings = rings_at(new_lease, new_due)
if run ~= by_run or token ~= by_token or (absent ~= '' and redis.call('HEXISTS', signals, absent) == 1) then
    return answer({REFUSED})
end
if not is_listed(rings) then return unlisted({UNLISTED}, rings) end
list(rings)
if at ~= '' then keep(at, parts) end
if taken ~= '' then
    redis.call('HSET', signals, taken .. ' taken', 1)
    redis.call('HDEL', signals, taken)
end
redis.call('HSET', record, 'steps', steps, {_pairs(_CHANGING)})
if absent ~= '' then redis.call('HDEL', signals, absent .. ' taken') end
renew(at ~= '' and record .. ':' .. at)
return answer({DONE})
""")

SAVE = _script(f"""by_run by_token at parts begun
if run ~= by_run or token ~= by_token then return answer({REFUSED}) end
if begun ~= '' then
    local there = redis.call('GETRANGE', record .. ':' .. at, 0, #begun + 3)
    if string.sub(there, 1, #begun) == begun and there ~= begun .. 'null' then return answer({DONE}) end
end
keep(at, parts)
redis.call('HSET', record, 'steps', steps)
renew(record .. ':' .. at)
return answer({DONE})
""")

PART = _script(f"""by_run by_token parts number
local key, is_input = record .. ':' .. parts, by_run == ''
if not is_input and (run ~= by_run or token ~= by_token) then return answer({REFUSED}) end
if not is_input and number == '0' then redis.call('HSET', record, 'large', large .. ' ' .. parts) end
local is_new = redis.call('EXISTS', key) == 0
redis.call('HSET', key, number, ARGV[2])
if not is_input and living then
    expire(key, living)
elseif is_input and is_new then
    redis.call('EXPIRE', key, 86400)
end
return answer({DONE})
""")

RESTART = _script(f"""by_run by_token parts {_new(_GIVEN)}
local rings = rings_at(new_lease, new_due)
if run ~= by_run or token ~= by_token then return answer({REFUSED}) end
if not is_listed(rings) then return unlisted({UNLISTED}, rings) end
local kept, names = string.match(parts, '^%S*'), redis.call('HKEYS', signals)
list(rings)
for _, name in ipairs(names) do
    if string.find(name, ' taken', 1, true) then redis.call('HDEL', signals, name) end
end
{_CREATE}
drop(kept)
steps, large = 0, kept
renew()
return answer({DONE})
""")

SIGNAL = _script(f"""name now nonce
local kept = redis.call('EXISTS', void .. nonce)
if status and kept == 0 and not is_closed
    and redis.call('HEXISTS', signals, name) + redis.call('HEXISTS', signals, name .. ' taken') == 0 then
    local wakes = waits == name and tonumber(lease) == 0
    if wakes and not is_listed(now) then return unlisted({UNLISTED}, now) end
    if wakes then
        list(now)
        redis.call('HSET', record, 'due', now)
    end
    redis.call('HSET', signals, name, ARGV[2])
    {_make_void("nonce", _DELAY)}
    renew(signals)
    kept = 1
end
return answer({DONE}, kept, whole(record))
""")

REMOVE = _script(f"""by_run by_token nonce
if redis.call('EXISTS', void .. nonce) == 1 then return answer({DONE}, false) end
if by_run ~= '' and (run ~= by_run or token ~= by_token) then return answer({REFUSED}, false) end
local listed, created = unpack(redis.call('HMGET', record, 'listed', 'created'))
{_make_void("nonce", _DELAY)}
if created then {_make_void("created", _DELAY)} end
if by_time then
    redis.call('ZCARD', by_id)
    redis.call('ZREM', by_time, id)
    redis.call('ZREM', by_id, id)
elseif entry ~= '' then
    {_make_void("entry", _PAUSE)}
    superfluous, offered = entry, entry
end
drop()
redis.call('UNLINK', record, signals)
return answer({DONE}, listed)
""")

READ = _script("""
return whole(record)
""")

RESULTS = _script(f"""by_run head start stop
local page, size = {{}}, 0
if run == by_run then
    for at = tonumber(start), math.min(stop, steps) - 1 do
        local value = redis.call('GET', record .. ':' .. at)
        if value and string.sub(value, 1, #head) == head then
            page[#page + 1] = value
            size = size + #value
            if size >= {1 << 20} or #page == 2000 then break end
        elseif at < tonumber(step) then
            break
        end
    end
end
return page
""")

PART_OF = _script("""parts number
return redis.call('HGET', record .. ':' .. parts, number)
""")

RECEIVED = _script("""by_run name
return run == by_run and redis.call('HGET', signals, name)
""")

LOOK = _script(f"""field candidate
if redis.call('HGET', record, field) ~= candidate then
    {_make_void("candidate", _PAUSE)}
    return answer({DONE}, false)
end
local rings = rings_at(lease, due)
if field == 'entry' and score(entry) < (tonumber(rings) or math.huge) then
    is_listed(rings)
    if not adopts then return unlisted({UNLISTED}, rings) end
    list(rings)
    superfluous = ''
    return answer({DONE}, false)
end
return answer({DONE}, whole(record))
""")

DUE = f"""{_cut("prefix", "now", "limit")}{_WHOLE}
local page, moved
redis.call('ZREM', KEYS[1], '')  -- so that a server that is full does not refuse what follows
repeat
    page, moved = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, limit), false
    for _, id in ipairs(page) do
        local lease, due = unpack(redis.call('HMGET', prefix .. '{{' .. id .. '}}', 'lease', 'due'))
        if lease then
            moved = redis.call('ZADD', KEYS[1], 'CH', tonumber(lease) ~= 0 and lease or due, id) == 1 or moved
        else
            moved = redis.call('ZREM', KEYS[1], id) + redis.call('ZREM', KEYS[2], id) > 0
        end
    end
until not moved
for at, id in ipairs(page) do
    page[at] = {{id, whole(prefix .. '{{' .. id .. '}}')}}
end
return page
"""

FIND = f"""{_cut("prefix", "after", "limit", "status", "workflow")}{_WHOLE}
local found, page = {{}}, redis.call('ZRANGEBYLEX', KEYS[2], after, '+', 'LIMIT', 0, 1000)
for _, id in ipairs(page) do
    local record = prefix .. '{{' .. id .. '}}'
    local its_status, its_workflow = unpack(redis.call('HMGET', record, 'status', 'workflow'))
    if not its_status then
        redis.call('ZREM', KEYS[1], id)
        redis.call('ZREM', KEYS[2], id)
    elseif (status == '' or its_status == status) and (workflow == '' or its_workflow == workflow) then
        found[#found + 1] = {{id, whole(record)}}
        if #found == tonumber(limit) then break end
    end
end
return {{#page == 1000 and page[1000], found}}
"""

INDEX = "return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))"

OFFER = """
if ARGV[1] ~= 'inf' then redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2]) end
if ARGV[3] ~= '' then redis.call('ZADD', KEYS[2], 0, ARGV[2]) end
"""
