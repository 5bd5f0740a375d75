"""What the scripts of `redis_lua` have in common: pieces of Lua, to be put where they are needed.

A function of Lua's is made anew each time a script runs, which takes as long as a write; a piece takes nothing.

Every script has as ``KEYS`` the record and, but in a cluster, the index by time and that by id; as ``ARGV[1]`` all that
is short, with a NUL between any two values, and as ``ARGV[2]`` what may be large: a driver takes longer to send a value
of its own than a script to cut one off.  What is `None` is empty there and in the record.
"""

from __future__ import annotations

from ..storage import CLOSED, Record

STATE = Record._fields[7:]
"""What of a record a commit may change, beside its token: one text in the record's hash, with a NUL between any two."""

OFTEN = STATE[:4]
"""Its step, status, due and lease: what most scripts look at, and cheap to cut off, for they come first."""

FIELDS = ("run", "workflow", "version", "first_input", "token", "state")

REFUSED, DONE, UNLISTED, NEW = range(4)
"""How a script answers; the last two say that it has done nothing, and what the index must have first."""

FOUND, TAKEN, CREATED = range(3)
"""How a claim ends."""

PAUSE = 3600
"""Seconds for which a process may stop between two requests of one act."""

DELAY = 300
"""Seconds by which a request may come late."""

NEW_FIELDS = " ".join(f"new_{name}" for name in FIELDS)
SIGNALS = "record .. ':signals'"
IS_CLOSED = "(" + " or ".join(f"status == '{status}'" for status in sorted(CLOSED)) + ")"
PACKED = f"table.concat({{{', '.join(STATE)}}}, '\\0')"

# A record is read as two: what is short, and its input, which is empty if it is in the parts that are named last.
WHOLE = f"""
local function whole(record)
    local fields = redis.call('HMGET', record, {", ".join(f"'{name}'" for name in (*FIELDS, "parts", "input"))})
    return fields[1] and {{table.concat(fields, '\\0', 1, {len(FIELDS) + 1}), fields[{len(FIELDS) + 2}]}}
end
"""


def cut(text: str, *names: str, beginning: str = "") -> str:
    """Return what gives names to the first values of a text; a new state has the rest."""
    pattern = "%z".join(["(.*)" if name == "new_state" else "([^%z]*)" for name in names])
    return f"local {', '.join(f'{beginning}{name}' for name in names)} = string.match({text}, '^{pattern}')"


def script(names: str, body: str) -> str:
    """Return a script over one execution, with the names of the short values that it has besides those of every one."""
    return f"""
{cut("ARGV[1]", "id", "offered", "ttl", *names.split())}
local record, by_time, by_id = KEYS[1], KEYS[3] and KEYS[2], KEYS[3]
local run, token, state, ahead, large, living, entry = unpack(redis.call('HMGET', record,
    'run', 'token', 'state', 'ahead', 'large', 'until', 'entry'))
{cut("(state or '')", *OFTEN)}
{cut("new_state", *OFTEN, beginning="new_") if "new_state" in names else ""}
local adopts, superfluous, large, entry = false, '', large or '', entry or ''
local steps = tonumber(ahead) or tonumber(step) or 0  -- how many there may be: as the record says, but for a while
{WHOLE if "whole(" in body else ""}
{body}
"""


def make_void(name: str, seconds: int) -> str:
    """Return what keeps whoever comes late from using a name."""
    # A server that is full refuses a write that takes memory, but not after one of the same script that takes none.
    key = f"record .. ':void:' .. {name}"
    return f"redis.call('UNLINK', {key}) redis.call('SET', {key}, '', 'EX', {seconds})"


def is_void(name: str) -> str:
    """Return what tells whether a name was made void."""
    return f"redis.call('EXISTS', record .. ':void:' .. {name}) == 1"


def rings_at(lease: str, due: str) -> str:
    """Return what says when the sweep should ring."""
    return f"(tonumber({lease}) ~= 0 and {lease} or {due})"


def score(entry: str) -> str:
    """Return the time of an entry of a cluster's index."""
    return f"tonumber(string.match({entry}, '^[^:]*'))"


def answer(status: int, *values: str) -> str:
    """Return what ends a script, and tells which entry of a cluster's index is superfluous now."""
    return f"""
do
    if not adopts and offered ~= entry then superfluous = offered end
    {"" if values else f"if superfluous == '' then return {status} end"}
    return {{{", ".join([str(status), "superfluous", *values])}}}
end"""


def ask_for_entry(status: int, rings: str) -> str:
    """Return what ends a script for want of an entry in a cluster's index."""
    return f"do return {{{status}, tonumber({rings}) and {rings} or 'inf'}} end"


def need_entry(status: int, rings: str) -> str:
    """Return what sees to it that a cluster's index has an entry for the record which is not too late."""
    return f"""
if not by_time then
    local latest = tonumber({rings}) or math.huge
    adopts = offered ~= '' and offered ~= entry and {score("offered")} <= latest and not ({is_void("offered")})
    if not adopts and (entry == '' or {score("entry")} > latest) then {ask_for_entry(status, rings)} end
end"""


def enlist(rings: str) -> str:
    """Return what puts the record in the index by time, unless it is there, and early enough."""
    return f"""
if by_time then
    local listed = tonumber({rings_at("lease", "due")})
    if {rings} == '' then
        redis.call('ZREM', by_time, id)
    elseif not (listed and listed <= tonumber({rings})) then
        redis.call('ZADD', by_time, {rings}, id)
    end
elseif adopts then
    if entry ~= '' then {make_void("entry", PAUSE)} end
    redis.call('HSET', record, 'entry', offered)
    superfluous = entry
end"""


KEEP = """
redis.call('SET', record .. ':' .. at, ARGV[2])
steps = math.max(steps, at + 1)
if large ~= '' then
    local kept = {}
    for one in string.gmatch(large, '%S+') do
        if one ~= parts and string.match(one, '^[^:]*') == at then
            redis.call('UNLINK', record .. ':' .. one)
        else
            kept[#kept + 1] = one
        end
    end
    large = table.concat(kept, ' ')
    redis.call('HSET', record, 'large', large)
end"""
"""Keeps the result of step `at`; only one of its `parts` is still of use."""


def drop(kept: str) -> str:
    """Return what removes all results, and all parts but one."""
    return f"""
for first = 0, steps - 1, 1000 do
    local keys = {{}}
    for step = first, math.min(first + 999, steps - 1) do
        keys[#keys + 1] = record .. ':' .. step
    end
    redis.call('UNLINK', unpack(keys))
end
for one in string.gmatch(large, '%S+') do
    if one ~= {kept} then redis.call('UNLINK', record .. ':' .. one) end
end"""


def expire(key: str, at: str) -> str:
    """Return what lets a key expire at a time, or never."""
    then = f"redis.call('PEXPIREAT', {key}, string.format('%.0f', math.min({at} * 1000, 9e15)))"
    return f"if {at} then {then} else redis.call('PERSIST', {key}) end"


def renew(key: str = "nil") -> str:
    """Return what puts the end of an execution's life off; at its end, for it reads the state that was written.

    Args:
        key: One that may be new.
    """
    return f"""
if ttl ~= '' or living then
    local new, before, expires = {key}, tonumber(living or 0), nil
    living = before
    if ttl == '' then  -- it was written with one before
        living = nil
        redis.call('HDEL', record, 'until')
    else
        {cut("state", *STATE)}
        local rings, now = {rings_at("lease", "due")}, redis.call('TIME')
        local goes_on = math.max(tonumber(rings) or 0, tonumber(wake) or 0)
        expires = math.max(now[1] + now[2] / 1e6, goes_on) + ttl
        if expires > living or expires + 2 * ttl < living then
            living = expires + ttl
            redis.call('HSET', record, 'until', living)
        end
    end
    if living ~= before then
        for step = 0, steps - 1 do
            {expire("record .. ':' .. step", "living")}
        end
        for one in string.gmatch(large, '%S+') do
            {expire("record .. ':' .. one", "living")}
        end
        {expire(SIGNALS, "living")}
    elseif new then
        {expire("new", "living")}
    end
    {expire("record", "expires")}
end"""
