"""Five methods that a user writes, seen as a `Journal`, as far as they carry it.

They have no place for anything but the step and the results: no lease, no stamp, no name of a branch.  So a write is
never refused, answers are recorded in the order of the branches, and what needs more is refused by name.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from .blocking import settle
from .errors import NotEncodable, NotSupported, message_of
from .journal import Journal
from .record import Changed, Entry, Record, Since, State, state_text

_PAGE = 1 << 20
"""Bytes after which a page of results ends."""

_RUN = "0"
"""The run of every execution: five methods do not know one from an earlier one."""


class Storage(Protocol):
    """The five methods that a user writes, each plain or ``async``.

    The executor writes a result before the step that counts it, and deletes everything at the end.
    """

    def get(self, id: str, /) -> Any:
        """Return the last state that was set, ``{"step": int}``, or ``None``."""

    def set(self, id: str, state: dict[str, int], /) -> Any:
        """Keep the state, ``{"step": int}``."""

    def delete(self, id: str, /) -> Any:
        """Forget the state and all results; an unknown id is no error."""

    def get_result(self, id: str, step: int, /) -> Any:
        """Return what `set_result` was given for this step."""

    def set_result(self, id: str, step: int, data: Any, /) -> Any:
        """Keep the result of a step, any JSON value; a second one for the same step replaces the first."""


class FiveMethods(Journal):
    """A plain `Storage` seen as a Journal.

    Args:
        storage: The storage.
    """

    part_size = write_size = 1 << 62

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def refuse(self, what: str) -> NoReturn:
        """Say that five methods cannot promise `what`."""
        raise NotSupported(type(self._storage).__name__, what)

    async def read(self, id: str, start: tuple[int, int] = (0, 0), stop: int = 0) -> tuple[Record | None, list[Entry]]:
        """Read the state, and results until they are large enough for a page."""
        name = type(self._storage).__name__
        state = await settle(self._storage.get(id))
        if state is None:
            return None, []
        step = state.get("step") if isinstance(state, dict) else None
        if not isinstance(step, int) or step < 0:
            raise TypeError(f"{name}.get({id!r}) returned something else than {{'step': int}} or None")
        record = Record(id, _RUN, "", step, "", "running", None, 0.0, state_text(State()))
        page, size = list[Entry](), 0
        for place in range(max(start[0], 0), min(step, stop)):
            if size >= _PAGE:
                break
            value = await settle(self._storage.get_result(id, place))
            try:
                page.append(Entry(_RUN, place, 0, "", self.codec.dumps(value)))
            except Exception as error:
                raise NotEncodable(f"what {name}.get_result({id!r}, {place}) returned", message_of(error)) from error
            size += len(page[-1].data)
        return record, page

    async def write(
        self, old: Record | None, new: Record | None, entries: Sequence[Entry] = (), *, flush: bool = True
    ) -> bool:
        """Write the results, then the step."""
        if new is None:
            assert old is not None
            await settle(self._storage.delete(old.id))
            return True
        for entry in entries:
            if entry.place >= 0:
                await settle(self._storage.set_result(new.id, entry.place, self.codec.loads(entry.data)))
        if new.step > (old.step if old else 0):
            await settle(self._storage.set(new.id, {"step": new.step}))
        return True

    async def update(
        self, id: str, known: Record | None, change: Callable[[Record | None, Since], Changed], *, flush: bool = True
    ) -> Record | None:
        """Write a change of what this invocation knows: there is nothing to compare it with."""
        changed = change(known, None)
        if changed is None:
            return known
        new, entries = changed
        await self.write(known, new, list(entries))
        return new and new._replace(run=_RUN)

    def due(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: five methods cannot list."""
        self.refuse("sweep")

    def find(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: five methods cannot list."""
        self.refuse("list")


def journal_for(storage: Storage) -> Journal:
    """Return `storage` itself if it is a `Journal`, or else its `FiveMethods`.

    Raises:
        TypeError: When `storage` lacks one of the five methods.
    """
    if isinstance(storage, Journal):
        return storage
    missing = [
        name
        for name in ("get", "set", "delete", "get_result", "set_result")
        if not callable(getattr(storage, name, None))
    ]
    if missing or isinstance(storage, type):
        what = (
            f"the class {storage.__name__}, not an instance of it"
            if isinstance(storage, type)
            else f"a {type(storage).__name__} without {', '.join(missing)}"
        )
        raise TypeError(
            f"{what} was given as a storage: a storage has the methods get, set, delete, get_result and set_result "
            f"(see sequential.five.Storage), or is built in (sequential.stores.sqlite.SQLiteStorage); "
            f"sequential.stores.open(url) makes one of a URL"
        )
    return FiveMethods(storage)
