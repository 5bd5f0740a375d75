"""Removing an execution from an object store, so that the next one of the same id comes to no harm.

A store deletes whatever it finds.  So a removal first replaces the record by a tombstone, which is a step like any
other, and deletes that last.  Everything else lies in a folder of its run, which no later execution has, and may be
deleted at any time; only the key of the record is used again.  A tombstone therefore belongs to who wrote it, for
`_GRACE` seconds: that process deletes it within `_PROMPT` seconds, or writes it again first; others leave it alone so
long, and only then replace it.  No two clocks are compared, unless a tombstone is older than `_ABANDONED` seconds: that
is given up at once.  What remains is a deletion that the store carries out more than `_GRACE` - `_PROMPT` seconds after
it was sent, or a second time because its answer was lost.  It would delete an execution of the same id that has begun
meanwhile: the holder of that is then told that it is fenced off.
"""

from __future__ import annotations

from contextlib import suppress
from time import monotonic, time

from ..storage import Record
from .bucket import Bucket, Conflict
from .objects_record import State, check_held
from .objects_states import ATTEMPTS, Keep, States

_PROMPT, _GRACE, _ABANDONED = 1.0, 6.0, 60.0


async def remove(bucket: Bucket, states: States, id: str, held: Record | None) -> None:
    """Remove an execution, and what is left of earlier ones of its id.

    Args:
        bucket: Where it is.
        states: What is kept there.
        id: Which.
        held: Whose run and token it must have; left out, whatever it has.

    Raises:
        Fenced: When it has others, or is gone.
    """
    doomed: list[str] = []

    async def change(state: State, _: Keep) -> State | None:
        if held is not None:
            check_held(state, held, held.token)
        if state.record is None and not is_abandoned(state):
            return None
        gone = state.gone if state.record is None else (state.record.run, *state.gone)
        doomed[:] = await bucket.remains(id, gone, "record")
        return State(gone=gone)

    since = monotonic(), time()
    state, done = await states.change(id, change, held and (held.run, held.token))
    if not done or (found := state.found) is None:
        return
    await bucket.delete(doomed)
    with suppress(Conflict):  # another has replaced it
        for _ in range(ATTEMPTS):
            # The monotonic clock stands still while a machine sleeps, and the other may be set.
            if max(monotonic() - since[0], time() - since[1]) < _PROMPT:
                await bucket.erase(id, found)
                return
            since = monotonic(), time()
            found = await bucket.swap(id, found.data, found)


async def outlive(bucket: Bucket, id: str, state: State) -> None:
    """Wait for the end of a removal; return only when the remover must have died.

    Raises:
        Conflict: When it has ended.
    """
    until = monotonic() + (0.0 if bucket.requests.is_local else _GRACE)
    while state.found and monotonic() < until and not is_abandoned(state):
        await bucket.requests.pause(_GRACE / 100)
        later = await bucket.get(id)
        if later is None or later.nonces != state.found.nonces:
            raise Conflict(later)


def is_abandoned(state: State) -> bool:
    """Whether it is a tombstone that has been there for long."""
    return state.record is None and state.found is not None and time() - state.found.modified > _ABANDONED
