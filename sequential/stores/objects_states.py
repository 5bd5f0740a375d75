"""The states of executions in a bucket, for `sequential.stores.objects`: read, and changed by compare-and-swap."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from ..errors import Fenced, StorageError
from ..storage import Record, Result
from .bucket import Bucket, Conflict, Kept, check_missing, nonce
from .clients import Recent
from .objects_record import State, Value, decode, decode_body, decode_result, encode, encode_result

ATTEMPTS = 100
"""How often a change is tried while others change the same execution: each time, one of them has succeeded."""

_INLINE = 1 << 14
"""Bytes from which a value is an object of its own."""

_TAIL = 1 << 15
"""Bytes of results that are written again with each commit: fewer would make more segments, and more reading."""

_PAGE = 1 << 20
_SEGMENTS = _PAGE // _TAIL

_KNOWN = 256
"""How many executions are remembered as they were last seen, so that a holder need not read before each commit."""

Keep: TypeAlias = Callable[..., Awaitable[Value]]
"""Keeps a value beside the record if it is large, and returns what stands for it."""

_Change: TypeAlias = Callable[[State, Keep], Awaitable[State | None]]


class States:
    """What is kept of each execution.

    Args:
        bucket: Where.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.known = Recent[State](_KNOWN)
        """What was last seen of some, by their ids."""

    async def read(self, id: str) -> State:
        """Return what is kept of an execution.

        Raises:
            Damaged: When it is not what was written.
        """
        return decode(await self._bucket.get(id))

    async def read_after(self, record: Record, error: FileNotFoundError) -> State:
        """Return what is kept now that something was missed."""
        state = await self.read(record.id)
        check_missing(record, state.record, error)
        return state

    async def change(self, id: str, change: _Change, held: tuple[str, int] | None = None) -> tuple[State, bool]:
        """Replace what is kept of an execution by what `change` makes of it, until nobody else comes in between.

        Args:
            id: Which.
            change: Returns what to write in the place of what it is given, or ``None`` to leave that alone; it is also
                given a function for values that may be large.
            held: The run and the token of a holder, who need not read what he himself has written here.

        Returns:
            What is kept now, and whether this has written it.
        """
        state = self.known.put(id, None)
        if state is None or state.record is None or (state.record.run, state.record.token) != held:
            state = await self.read(id)
        made: dict[str, Kept] = {}

        async def keep(name: str, data: bytes, inline: int = _INLINE) -> Value:
            if len(data) < inline:
                return data
            if name not in made:
                made[name] = Kept(f"{name}-{nonce()}", len(data))
                await self._bucket.keep(id, made[name], data)
            return made[name]

        try:
            for _ in range(ATTEMPTS):
                try:
                    new = await change(state, keep)
                    if new is None:
                        await self._bucket.discard(id, made.values())
                        return state, False
                    new = await _shorten(new, keep)
                    body = encode(new)
                    found = await self._bucket.swap(id, body, state.found)
                except Conflict as conflict:
                    state = decode(conflict.found)
                    continue
                new = new._replace(found=found)
                if new.record:
                    self.known.put(id, new if found.data is body else decode(found))
                return new, True
        except Fenced:
            await self._bucket.discard(id, made.values())
            raise
        raise StorageError(f"object store: too many write {id!r} at once: try again")

    async def load(self, id: str, value: Value) -> bytes:
        """Return what a value stands for.

        Raises:
            FileNotFoundError: When it is kept beside the record, and is not there.
        """
        return await self._bucket.load(id, value) if isinstance(value, Kept) else value

    async def whole(self, state: State) -> Record | None:
        """Return the record with its input."""
        while state.record is not None:
            try:
                return state.record._replace(input=await self.load(state.record.id, state.input))
            except FileNotFoundError as error:
                state = await self.read_after(state.record, error)
        return None

    async def page(self, id: str, state: State, start: int, stop: int) -> list[Result]:
        """Return a page of results.

        Raises:
            FileNotFoundError: When one of them is kept beside the record, and is not there.
        """

        async def load(values: list[Value]) -> list[bytes]:
            return await self._bucket.requests.together(lambda value: self.load(id, value), values)

        wanted = sorted(segment for segment in state.segments if segment[0] < stop and segment[1] >= start)
        items: dict[int, bytes] = {}
        count, until = 0, start
        while not items and until < stop:
            count += _SEGMENTS
            until = wanted[count][0] if count < len(wanted) else stop  # from there on, another segment has steps too
            bodies = dict(zip(wanted, await load([kept for _, _, kept in wanted[:count]]), strict=False))
            tails = [decode_body(bodies[segment]).tail for segment in state.segments if segment in bodies]
            for tail in [*tails, state.tail]:
                items.update((step, item) for step, item in tail.items() if start <= step < until)
        results, values, total = list[Result](), list[Value](), 0
        for _, item in sorted(items.items()):
            result, kept = decode_result(item)
            total += kept.size if kept else len(result.data)
            if results and total > _PAGE:
                break
            results.append(result)
            values.append(kept or result.data)
        return [result._replace(data=data) for result, data in zip(results, await load(values), strict=True)]


async def add(state: State, run: str, result: Result, keep: Keep) -> State:
    """Put a result into the tail, instead of an earlier one."""
    item = encode_result(result, await keep(f"{run}/{result.step}", result.data))
    return state._replace(tail={**state.tail, result.step: item})


async def _shorten(state: State, keep: Keep) -> State:
    """Move the tail into a segment if it has become too long."""
    if state.record is None or sum(map(len, state.tail.values())) < _TAIL:
        return state
    first, *_, last = sorted(state.tail)
    # Its nonce tells it from one that was made before a conflict, which may have fewer results.
    kept: Any = await keep(f"{state.record.run}/{first}-{last}-{nonce()}", encode(State(tail=state.tail)), 0)
    return state._replace(tail={}, segments=(*state.segments, (first, last, kept)))
