"""Every error that this library raises on purpose.

    SequentialError
    |- HookNotConfigured    a tool is asked for and nobody said how to call tools, or wrongly
    |- InvalidWorkflow      what was given is not a generator function
    |- InvalidYield         a workflow yielded something that is not a request
    |- InvalidId            an execution id that no store could carry
    |- InvalidName          a signal's name, likewise
    |- IdInUse              the id belongs to another workflow, or has another input
    |- UnknownExecution     no such id in the store
    |- UnknownWorkflow      the execution's workflow is not among ``workflows=``
    |- UnknownTool          no function is registered for the tool that was asked for
    |- AlreadyEnded         the execution is finished or cancelled
    |- NotSupported         this storage cannot promise what was asked of it
    |- NotEncodable         the codec refused an input, a result or a final value
    |- EventLoopNeeded      a blocking method met something that really waits
    |- Diverged             the workflow asks for something else than it did before
    |- Fenced               another invocation has taken this execution over
    |- CallbackFailed       a ring over HTTP could not be sent, or was refused
    |- StorageError         the store is away, full, read-only or not a store at all
    |  `- Damaged           what is stored of an execution is missing, or cannot be read
    `- NotInstalled         a store's driver is an optional extra, and not there

    ToolError               a tool has failed; within a workflow, which may catch it
    Cancelled               the workflow is to end, and may undo what it did; no ``except Exception`` takes it

None of the first is ever recorded as the result of a step.  What an error knows it carries as attributes and
in ``args``, so it survives pickling; the text is made from them when it is shown.
"""

from __future__ import annotations


class SequentialError(Exception):
    """Base of all errors raised by this library."""

    _text = "{0}"

    def __str__(self) -> str:
        return self._text.format(*self.args)


class HookNotConfigured(SequentialError):
    """A tool was asked for, but no ``call`` hook is configured, or one that does not take what it is called with."""


class InvalidWorkflow(SequentialError):
    """The object given as a workflow is not a generator function."""


class InvalidYield(SequentialError):
    """A workflow yielded something that is not a request."""


class InvalidId(SequentialError):
    """An execution id that would not fit into a URL, a key or a path."""

    _text = (
        "{0} cannot be an execution id: use 1 to 200 characters of A-Z a-z 0-9 _ . : @ ~ - "
        "(and not '.' or '..' alone), or leave the id out to get a new one; an input is no id, and has a place of its "
        "own: input="
    )

    def __init__(self, id: object) -> None:
        super().__init__(id)
        self.id = id

    def __str__(self) -> str:
        return self._text.format(_shown(self.id))


class InvalidName(SequentialError):
    """A signal's name that would not fit into a key or a path."""

    _text = "{0} cannot be the name of a signal: use 1 to 200 characters of A-Z a-z 0-9 _ . : @ ~ -"

    def __init__(self, name: object) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return self._text.format(_shown(self.name))


class IdInUse(SequentialError):
    """An execution with this id exists and is not the one that is asked for.

    Args:
        id: The execution's id.
        what: What differs, ``"workflow"``, ``"input"`` or ``"history"``.
    """

    _text = (
        "execution {0!r} was started with another {1}: use another id for another execution{2}, or delete({0!r}) to "
        "begin anew"
    )

    def __init__(self, id: str, what: str) -> None:
        super().__init__(id, what)
        self.id, self.what = id, what

    def __str__(self) -> str:
        return self._text.format(*self.args, ", leave the input out to go on with this one" * (self.what == "input"))


class UnknownExecution(SequentialError):
    """No execution with this id is in the store."""

    _text = (
        "there is no execution {0!r} in the store: it was never started, was deleted, or has finished "
        "(a finished execution is kept only with FlowExecutor(..., retain=True))"
    )

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id


class UnknownWorkflow(SequentialError):
    """The workflow that an execution was started with is not known to this executor."""

    _text = "execution {0!r} runs workflow {1!r}, which is not among FlowExecutor(..., workflows=[{2}]): add it there"

    def __init__(self, id: str, workflow: str, known: str) -> None:
        super().__init__(id, workflow, known)
        self.id, self.workflow, self.known = id, workflow, known


class UnknownTool(SequentialError):
    """No function is registered for the tool that was asked for; nothing is recorded.

    Args:
        asked: The tool, ``"category.name"``.
        hint: What is registered instead.
    """

    _text = "no tool {0!r} is registered: {1}"

    def __init__(self, asked: str, hint: str) -> None:
        super().__init__(asked, hint)
        self.asked, self.hint = asked, hint


class AlreadyEnded(SequentialError):
    """The execution is finished or cancelled, so nothing more can happen to it.

    Args:
        id: The execution's id.
        status: Its status.
    """

    _text = (
        "execution {0!r} is {1}, and nothing more can happen to it: use another id for another execution, or "
        "delete({0!r}) to begin anew under this one"
    )

    def __init__(self, id: str, status: str) -> None:
        super().__init__(id, status)
        self.id, self.status = id, status


class NotSupported(SequentialError):
    """A storage of five methods cannot promise what was asked of it.

    Args:
        storage: The storage's type, by name.
        what: What was asked for.
    """

    _text = (
        "{1} needs more than the five storage methods of {0} can promise: use a built-in store "
        "(sequential.stores.sqlite.SQLiteStorage, sequential.stores.memory.MemoryStorage), or derive {0} from "
        "sequential.journal.Journal and check it with sequential.testing"
    )

    def __init__(self, storage: str, what: str) -> None:
        super().__init__(storage, what)
        self.storage, self.what = storage, what


class NotEncodable(SequentialError):
    """The codec refused a value; nothing was recorded.

    Args:
        where: Whose value it is: a tool and its step, an input, a final value.
        reason: What the codec said: the offending part and what is wrong with it.
    """

    _text = "{0} cannot be stored: {1}"

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason


class EventLoopNeeded(SequentialError):
    """A blocking method met a hook or a storage that really waits for something."""

    _text = (
        "a ..._sync method, or a handler without run=, met an async hook or storage that waits for the event loop: "
        "await the method of the same name without _sync, give wsgi_app or lambda_handler run=, or give hooks and a "
        "storage that are not async"
    )


class Diverged(SequentialError):
    """On replay the workflow asks for something else than what was recorded; nothing was run.

    Args:
        id: The execution's id.
        step: The index of the step at which they part.
        recorded: What this step was when it was recorded (``"tool api.user"``, ``"save"``).
        asked: What the workflow asks for now (``"return"`` when it ends too early).
    """

    _text = (
        "execution {0!r} has recorded {2!r} at step {1}, but its workflow now asks for {3!r}: the execution is parked "
        "and keeps its results; bring the earlier code path back (or branch on version()), then ring({0!r})"
    )

    def __init__(self, id: str, step: int, recorded: str, asked: str) -> None:
        super().__init__(id, step, recorded, asked)
        self.id, self.step, self.recorded, self.asked = id, step, recorded, asked


class Fenced(SequentialError):
    """Another invocation has taken this execution over, or it was cancelled or deleted; this one wrote nothing.

    Args:
        id: The execution's id.
    """

    _text = (
        "execution {0!r} is no longer held by this invocation: it was cancelled or deleted, or another invocation took "
        "it, which a lease= longer than the longest pause of a process avoids; this one has written nothing more"
    )

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id


class CallbackFailed(SequentialError):
    """A ring over HTTP could not be sent, or was refused; nothing is lost, for the sweep rings again.

    Args:
        url: Where it was to go.
        reason: What became of it.
        status: What it was answered with, if it was.
    """

    _text = "the callback to {0} {1}: check the URL, the secret and the service there; the sweep rings again"

    def __init__(self, url: str, reason: str, status: int | None = None) -> None:
        super().__init__(url, reason, status)
        self.url, self.reason, self.status = url, reason, status


class StorageError(SequentialError):
    """The store failed; the text names the store, what failed and what to do."""


class Damaged(StorageError):
    """What is stored of an execution is missing, or cannot be read.

    Args:
        id: The execution's id.
        place: The step of its log, ``-1`` for its input, a lower one for a signal; ``None`` for its record.
    """

    _text = (
        "what is stored of execution {0!r} is damaged ({2}): read it with the codec= and the key it was written with, "
        "restore it from a backup, or delete({0!r})"
    )

    def __init__(self, id: str, place: int | None) -> None:
        where = "its record" if place is None else "its input" if place == -1 else f"step {place}"
        super().__init__(id, place, "a signal" if place is not None and place < -1 else where)
        self.id, self.place = id, place

    def __reduce__(self) -> tuple[type[Damaged], tuple[str, int | None]]:
        return type(self), (self.id, self.place)


class NotInstalled(SequentialError, ImportError):
    """What a store is reached with is an optional extra, and not installed.

    Args:
        extra: The extra's name.
        missing: The module that was not found.
    """

    _text = "{1!r} is not installed: pip install 'sequential-flow[{0}]'"

    def __init__(self, extra: str, missing: str | None) -> None:
        super().__init__(extra, missing)
        self.extra, self.missing = extra, missing


class ToolError(Exception):
    """A tool has failed, and the workflow did not say what to do about it.

    A workflow may let it propagate: the execution is parked as failed.

    Args:
        message: What the tool said.
        tool: Which tool it was, ``"category.name"`` (or ``"wait name"`` for a signal that did not come), where known.
        not_undone: From a `saga`: the compensations that failed for good, in the order in which they ran.

    Example:
        >>> raise ToolError("no seat left", "flight.book")
        Traceback (most recent call last):
        sequential.errors.ToolError: flight.book failed: no seat left
    """

    def __init__(self, message: str, tool: str | None = None, not_undone: tuple[ToolError, ...] = ()) -> None:
        super().__init__(message, tool, not_undone)
        self.message, self.tool, self.not_undone = message, tool, not_undone

    def __str__(self) -> str:
        text = self.message if self.tool is None else f"{self.tool} failed: {self.message}"
        return "; not undone: ".join([text, *map(str, self.not_undone)])


class Cancelled(BaseException):
    """Thrown into a workflow at its ``yield`` when the execution is cancelled.

    The workflow may catch it and undo what it did by further steps; left uncaught, the execution ends as cancelled.
    """


_LONGEST = 5000
"""Characters that are kept of an error's text in a record: not every store has room for a whole page of HTML there."""


def describe(error: BaseException) -> str:
    """Return an error's type, text and notes, as they are shown to people."""
    text = f"{type(error).__name__}: {_storable(message_of(error))}"
    return _shortened("; ".join(filter(None, [text, notes_of(error)])))


def notes_of(error: BaseException) -> str:
    """Return the notes of an error, as they are shown to people."""
    return _shortened(_storable("; ".join(map(str, getattr(error, "__notes__", ())))))


def message_of(error: BaseException) -> str:
    """Return an error's text, or its type's name when it has none; of a group, the texts of what is in it.

    Whatever the error holds, the text can be stored.
    """
    try:
        text = "; ".join(map(message_of, error.exceptions)) if isinstance(error, BaseExceptionGroup) else str(error)
    except Exception:
        text = ""
    return (text or type(error).__name__).encode(errors="backslashreplace").decode()


def _storable(text: str) -> str:
    """Return a text that every store takes: PostgreSQL's has no NUL, UTF-8 no lone surrogate."""
    return text.replace("\0", "\\x00").encode(errors="backslashreplace").decode()


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _shown(value: object) -> str:
    """Return a text that was given as an id or a name; of what is none, its kind: it may be somebody's data."""
    return f"{value!r:.100}" if isinstance(value, str) else f"a {type(value).__name__}"
