"""The scripts of `sequential.stores.redis`: each is all that a method does, and atomic.

Redis does not roll back a script that fails in its midst.  So each first checks everything, then writes; out of memory
and without the right to write a server refuses the first write of a script or none.  What could fail comes before the
record, and before anything is lost: the user may lack a single command, or another program's key be in the place of an
index.

A driver that waits no longer for an answer asks again, and a network or a server that was held up may act on the first
request after the second, and after what came of it.  Most are refused by then for their token; the nonces of the others
stay void for some minutes.
"""

from __future__ import annotations

from .redis_macros import (
    CREATED,
    DELAY,
    DONE,
    FIELDS,
    FOUND,
    IS_CLOSED,
    KEEP,
    NEW,
    NEW_FIELDS,
    OFTEN,
    PACKED,
    PAUSE,
    REFUSED,
    SIGNALS,
    STATE,
    TAKEN,
    UNLISTED,
    WHOLE,
    answer,
    ask_for_entry,
    cut,
    drop,
    enlist,
    expire,
    is_void,
    make_void,
    need_entry,
    renew,
    rings_at,
    score,
    script,
)

_CREATE = f"""
state = new_state
redis.call('HSET', record, 'large', kept, 'parts', parts, 'input', ARGV[2],
    'ahead', tonumber(new_step) ~= 0 and 0 or '', {", ".join(f"'{name}', new_{name}" for name in FIELDS)})"""

CLAIM = script(
    f"nonce now create by_run parts {NEW_FIELDS}",
    f"""
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
    local rings = {rings_at("new_lease", "new_due")}
    local kept = string.match(parts, '^%S*')
    large = kept
    if {is_void("nonce")} then {answer(DONE, str(CREATED), "false")} end
    if create == '' then {answer(DONE, str(FOUND), "whole(record)")} end
    {need_entry(NEW, "rings")}
    if not (by_id or string.find(offered, ':listed', 1, true)) then
        {ask_for_entry(NEW, "rings")}  -- what was there may have gone since an entry was offered to the one index
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
    redis.call('UNLINK', {SIGNALS})
    {enlist("rings")}
    {_CREATE}
    redis.call('HSET', record, 'created', nonce, 'claimed', nonce .. ':' .. new_token)
    {renew()}
    {answer(DONE, str(CREATED), "false")}
elseif claimed == nonce .. ':' .. token then
    taken = {TAKEN}
elseif by_run ~= '' and (by_run ~= run or tonumber(new_step) < tonumber(step)) then
    {answer(DONE, "taken", "whole(record)")}
elseif tonumber(new_lease) ~= 0 and tonumber(lease) <= tonumber(now) and not {IS_CLOSED} then
    {need_entry(UNLISTED, "new_lease")}
    {enlist("new_lease")}
    {cut("state", *STATE)}
    lease = new_lease
    state = {PACKED}
    redis.call('HINCRBY', record, 'token', 1)
    redis.call('HSET', record, 'state', state, 'claimed', nonce .. ':' .. redis.call('HGET', record, 'token'))
    {renew()}
    taken = {TAKEN}
end
{answer(DONE, "taken", "whole(record)")}
""",
)

COMMIT = script(
    "by_run by_token absent taken at parts new_token new_state",
    f"""
local rings = {rings_at("new_lease", "new_due")}
if run ~= by_run or token ~= by_token or (absent ~= '' and redis.call('HEXISTS', {SIGNALS}, absent) == 1) then
    {answer(REFUSED)}
end
{need_entry(UNLISTED, "rings")}
{enlist("rings")}
if at ~= '' then {KEEP} end
if taken ~= '' then
    redis.call('HSET', {SIGNALS}, taken .. ' taken', 1)
    redis.call('HDEL', {SIGNALS}, taken)
end
redis.call('HSET', record, 'token', new_token, 'state', new_state)
local differs = steps ~= tonumber(new_step)
if differs or tonumber(ahead) then redis.call('HSET', record, 'ahead', differs and steps or '') end
state = new_state
if absent ~= '' then redis.call('HDEL', {SIGNALS}, absent .. ' taken') end
{renew("at ~= '' and record .. ':' .. at")}
{answer(DONE)}
""",
)

SAVE = script(
    "by_run by_token at parts begun",
    f"""
if run ~= by_run or token ~= by_token then {answer(REFUSED)} end
if begun ~= '' then
    local there = redis.call('GETRANGE', record .. ':' .. at, 0, #begun + 3)
    if string.sub(there, 1, #begun) == begun and there ~= begun .. 'null' then {answer(DONE)} end
end
{KEEP}
redis.call('HSET', record, 'ahead', steps)
{renew("record .. ':' .. at")}
{answer(DONE)}
""",
)

PART = script(
    "by_run by_token parts number",
    f"""
local key, is_input = record .. ':' .. parts, by_run == ''
if not is_input and (run ~= by_run or token ~= by_token) then {answer(REFUSED)} end
if not is_input and number == '0' then redis.call('HSET', record, 'large', large .. ' ' .. parts) end
local is_new = redis.call('EXISTS', key) == 0
redis.call('HSET', key, number, ARGV[2])
if not is_input and living then
    {expire("key", "living")}
elseif is_input and is_new then
    redis.call('EXPIRE', key, 86400)
end
{answer(DONE)}
""",
)

RESTART = script(
    f"by_run by_token parts {NEW_FIELDS}",
    f"""
local rings = {rings_at("new_lease", "new_due")}
if run ~= by_run or token ~= by_token then {answer(REFUSED)} end
{need_entry(UNLISTED, "rings")}
local kept, names = string.match(parts, '^%S*'), redis.call('HKEYS', {SIGNALS})
{enlist("rings")}
for _, name in ipairs(names) do
    if string.find(name, ' taken', 1, true) then redis.call('HDEL', {SIGNALS}, name) end
end
{_CREATE}
{drop("kept")}
steps, large = 0, kept
{renew()}
{answer(DONE)}
""",
)

SIGNAL = script(
    "name now nonce",
    f"""
{cut("(state or '')", *STATE)}
local kept = {is_void("nonce")} and 1 or 0
if status and kept == 0 and not {IS_CLOSED}
    and redis.call('HEXISTS', {SIGNALS}, name) + redis.call('HEXISTS', {SIGNALS}, name .. ' taken') == 0 then
    local wakes = waits == name and tonumber(lease) == 0
    if wakes then
        {need_entry(UNLISTED, "now")}
        {enlist("now")}
        due = now
        state = {PACKED}
        redis.call('HSET', record, 'state', state)
    end
    redis.call('HSET', {SIGNALS}, name, ARGV[2])
    {make_void("nonce", DELAY)}
    {renew(SIGNALS)}
    kept = 1
end
{answer(DONE, "kept", "whole(record)")}
""",
)

REMOVE = script(
    "by_run by_token nonce",
    f"""
if {is_void("nonce")} then {answer(DONE, "false")} end
if by_run ~= '' and (run ~= by_run or token ~= by_token) then {answer(REFUSED, "false")} end
local listed, created = unpack(redis.call('HMGET', record, 'listed', 'created'))
{make_void("nonce", DELAY)}
if created then {make_void("created", DELAY)} end
if by_time then
    redis.call('ZCARD', by_id)
    redis.call('ZREM', by_time, id)
    redis.call('ZREM', by_id, id)
elseif entry ~= '' then
    {make_void("entry", PAUSE)}
    superfluous, offered = entry, entry
end
{drop("nil")}
redis.call('UNLINK', record, {SIGNALS})
{answer(DONE, "listed")}
""",
)

READ = script("", "return whole(record)")

RESULTS = script(
    "by_run head start stop",
    f"""
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
""",
)

PART_OF = script("parts number", "return redis.call('HGET', record .. ':' .. parts, number)")

RECEIVED = script("by_run name", f"return run == by_run and redis.call('HGET', {SIGNALS}, name)")

LOOK = script(
    "field candidate",
    f"""
if redis.call('HGET', record, field) ~= candidate then
    {make_void("candidate", PAUSE)}
    {answer(DONE, "false")}
end
local rings = {rings_at("lease", "due")}
if field == 'entry' and {score("entry")} < (tonumber(rings) or math.huge) then
    {need_entry(UNLISTED, "rings")}
    if not adopts then {ask_for_entry(UNLISTED, "rings")} end
    {enlist("rings")}
    superfluous = ''
    {answer(DONE, "false")}
end
{answer(DONE, "whole(record)")}
""",
)

DUE = f"""
{cut("ARGV[1]", "prefix", "now", "limit")}
{WHOLE}
local page, moved
redis.call('ZREM', KEYS[1], '')  -- so that a server that is full does not refuse what follows
repeat
    page, moved = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, limit), false
    for _, id in ipairs(page) do
        local state = redis.call('HGET', prefix .. '{{' .. id .. '}}', 'state')
        if state then
            {cut("state", *OFTEN)}
            moved = redis.call('ZADD', KEYS[1], 'CH', {rings_at("lease", "due")}, id) == 1 or moved
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

FIND = f"""
{cut("ARGV[1]", "prefix", "after", "limit", "status", "workflow")}
{WHOLE}
local found, page = {{}}, redis.call('ZRANGEBYLEX', KEYS[2], after, '+', 'LIMIT', 0, 1000)
for _, id in ipairs(page) do
    local record = prefix .. '{{' .. id .. '}}'
    local state, its_workflow = unpack(redis.call('HMGET', record, 'state', 'workflow'))
    {cut("(state or '')", "_", "its_status")}
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
