"""A tool call in progress: it is only performed here, and written elsewhere."""

import sys
from collections.abc import Awaitable, Coroutine
from typing import Any

from . import hooks
from .branches import Branch
from .codec import as_bytes
from .context import Current, being_called
from .errors import HookNotConfigured, NotEncodable, SequentialError, UnknownTool, message_of
from .requests import Tool
from .setup import Setup

INTERRUPTED = "interrupted"
"""What a call with ``once=True`` is answered with when it was started and nobody knows what became of it."""


class Unstorable(Exception):
    """What a tool was to be given, or has given, cannot be stored.

    Args:
        error: What is to be raised once the execution is parked.
    """

    def __init__(self, error: NotEncodable) -> None:
        super().__init__(error)
        self.error = error


class Call:
    """A tool call in progress.

    Args:
        branch: Who asks for it.
        beginning: How the entry begins that will answer it.
        current: What the tool may know about it.
        setup: What the executor was given.

    Raises:
        Unstorable: When the tool's input cannot be stored.
    """

    def __init__(self, branch: Branch, beginning: str, current: Current, setup: Setup) -> None:
        request = branch.asked
        assert isinstance(request, Tool)
        self.branch, self.beginning, self.request, self.started = branch, beginning, request, setup.clock()
        self._current, self._codec = current, setup.journal.codec
        try:
            self._input = as_bytes(self._codec, self._codec.dumps(request.input))
        except Exception as refused:
            raise self._unstorable("input", refused) from refused
        self.data = b""
        """What the codec has made of the result."""
        self.error: BaseException | None = None
        """What the tool raised."""
        self.outcome: Awaitable[Any] | None = None
        """What the hook returned, if that is still to be awaited."""
        self.is_begun = True
        """Whether something of it may have run."""

    def begin(self, hook: hooks.Call) -> None:
        """Call the hook."""
        request, token = self.request, being_called.set(self._current)
        try:
            # A copy, as every workflow's values are: what a tool does to its input, no replay would do again.
            box = [hook(request.category, request.name, self._codec.loads(self._input))]
            if hasattr(type(box[0]), "__await__"):
                self.outcome = box[0]
                return
        except BaseException as raised:
            box = [self._failed(raised, hook)]
        finally:
            being_called.reset(token)
        self._encode(box)

    async def finish(self, outcome: Awaitable[Any] | None) -> None:
        """Await what the hook returned, if that is still to be awaited."""
        if outcome is None:
            return
        self.outcome, token = None, being_called.set(self._current)
        try:
            box = [await outcome]
        except BaseException as raised:
            box = [self._failed(raised)]
        finally:
            being_called.reset(token)
        self._encode(box)

    def call_off(self) -> None:
        """Call off what is still to be awaited."""
        if isinstance(self.outcome, Coroutine):
            self.outcome.close()
            self.is_begun = False
        elif self.outcome is not None:
            getattr(self.outcome, "cancel", int)()

    def _failed(self, error: BaseException, hook: hooks.Call | None = None) -> dict[str, str]:
        """Return a tool's error as its answer, and raise what is no tool's error."""
        try:
            if isinstance(error, SequentialError) or not (isinstance(error, Exception) or _is_its_own(error)):
                raise error
            if hook is not None:
                hooks.refuse_unfit(hook, self.request.label, error)
        except (HookNotConfigured, UnknownTool):
            self.is_begun = False
            raise
        self.error = error
        return {"__error": message_of(error)}

    def _encode(self, box: list[Any]) -> None:
        """Encode what the tool came to, alone in a list, so that the codec can give it up."""
        try:
            self.data = as_bytes(self._codec, self._codec.dumps(box.pop()))
        except Exception as refused:
            raise self._unstorable("result", refused) from refused

    def _unstorable(self, what: str, refused: Exception) -> Unstorable:
        whose = f"the {what} of {self.request.label} (step {self._current.step} of execution {self._current.id!r})"
        return Unstorable(NotEncodable(whose, message_of(refused)))


def _is_its_own(error: BaseException) -> bool:
    """Whether a tool has cancelled itself, nobody having cancelled the task that it runs in."""
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None or not isinstance(error, asyncio.CancelledError):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return True
    return task is None or not task.cancelling()
