"""What a callback says: which execution, which step it rang for, and how many self-calls came before in a row."""

import json
from contextvars import ContextVar
from typing import NamedTuple

from ..checks import is_name
from ..errors import InvalidId

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
    """The run that it was rung for; ``None``: whichever there is, at whichever step."""
    step: int = 0
    """The step with which the invocation is to begin."""
    hop: int = 0
    """How many self-calls in a row there were, this one counted."""

    @property
    def message_id(self) -> str:
        """The same for every ring for the same step."""
        return f"{self.id}:{self.step}"

    def encode(self) -> bytes:
        """Return it as a request's body."""
        return json.dumps(self._asdict()).encode()


def parse(said: object, id: str) -> Callback:
    """Return the callback for execution `id` that a JSON value says; of an empty object, whichever step comes next.

    Raises:
        ValueError: When it says nothing of the kind; the text says what is wrong.
    """
    if not is_name(id):
        raise ValueError(str(InvalidId(id)))
    if not isinstance(said, dict) or said.get("id", id) != id:
        raise ValueError(f"it is a JSON object for execution {id!r}")
    callback = Callback(id, said.get("run"), said.get("step", 0), said.get("hop", 0))
    if not (callback.run is None or is_name(callback.run)):
        raise ValueError('"run" is not the nonce of a run')
    if not all(type(number) is int and 0 <= number < _MANY for number in callback[2:]):
        raise ValueError('"step" and "hop" are not whole numbers from 0 on')
    return callback
