"""What a callback says: which execution, how far it was, and how many self-calls came before in a row."""

from __future__ import annotations

import json
from contextvars import ContextVar
from typing import NamedTuple

from ..errors import InvalidId
from ..storage import Record, is_name

LIMIT = 4096
"""Bytes of a request's body at most; a callback's has some 300."""

_MANY = 1 << 31
"""Steps that no store counts."""

hops: ContextVar[int] = ContextVar("sequential.http.hops", default=0)
"""How many self-calls in a row have led to this invocation."""


class Callback(NamedTuple):
    """One ring of the doorbell."""

    id: str
    run: str | None = None
    """The run that it was rung for; ``None``: whichever there is."""
    step: int | None = None
    """The step with which the invocation is to begin; ``None``: whichever comes next."""
    hop: int = 0
    """How many self-calls in a row there were, this one counted."""

    @property
    def message_id(self) -> str:
        """The same for every ring for the same step."""
        return f"{self.id}:{self.step or 0}"

    def encode(self) -> bytes:
        """Return it as a request's body."""
        return json.dumps({name: value for name, value in self._asdict().items() if value is not None}).encode()

    @property
    def wanted(self) -> Record:
        """What to claim for it: so late a callback that the step is done must not even take the lease."""
        known = self.run is not None and self.step is not None
        return Record(self.id, self.run or "", step=self.step or 0) if known else Record(self.id, "")


def parse(said: object, id: str) -> Callback:
    """Return the callback for execution `id` that a JSON value says; of an empty object, whichever step comes next.

    Raises:
        ValueError: When it says nothing of the kind; the text says what is wrong.
    """
    if not is_name(id):
        raise ValueError(str(InvalidId(id)))
    if not isinstance(said, dict) or said.get("id", id) != id:
        raise ValueError(f"it is a JSON object for execution {id!r}")
    callback = Callback(id, said.get("run"), said.get("step"), said.get("hop", 0))
    if not (callback.run is None or is_name(callback.run)):
        raise ValueError('"run" is not the nonce of a run')
    numbers = (callback.hop, 0 if callback.step is None else callback.step)
    if not all(type(number) is int and 0 <= number < _MANY for number in numbers):
        raise ValueError('"step" and "hop" are not whole numbers from 0 on')
    return callback
