"""A workflow in progress: the generator, what it asks for next, and what can be wrong with it."""

from collections.abc import Callable, Generator, Iterable
from types import FunctionType, GeneratorType
from typing import Any, TypeVar

from .blocking import is_async
from .context import executing
from .errors import InvalidWorkflow, InvalidYield, NotSupported
from .requests import Return, Step, Version, parse, parse_return
from .storage import Record

T = TypeVar("T")

Workflow = Callable[..., Generator[Any, Any, T]]
"""A generator function of one argument, the input, or of none."""

# How CPython marks functions (inspect.CO_VARARGS and so on; inspect itself is too slow to import).
_VARARGS, _GENERATOR, _ASYNC_GENERATOR = 0x04, 0x20, 0x200


_FORMS = {
    "__tool": "tool(category, name, input) with texts for category and name",
    "__save": "save()",
    "__sleep": "sleep(seconds) with a number of at most 1e12",
    "__wait": "wait(name, timeout) with a name of letters, digits and _ . : @ ~ -, and a number of seconds or None",
    "__version": "version()",
}
"""How each request is written, by the key of its plain value."""


class Raised:
    """The workflow's end by an exception."""

    label = "raise"

    def __init__(self, error: Exception) -> None:
        self.error = error


class Progress:
    """One run through a workflow.

    Args:
        record: Whose; without a version, the storage has but five methods.
    """

    __slots__ = ("_generator", "_key", "_version")

    def __init__(self, record: Record) -> None:
        self._version, self._key = record.version, f"{record.id}:{record.run}"
        self._generator: Generator[Any, Any, Any] | None = None

    def begin(self, workflow: Workflow[Any], input: Any) -> None:
        """Create the generator; `workflow` is one that `check` has accepted.

        Raises:
            InvalidWorkflow: When a decorator around it makes something else of it.
        """
        generator: object = workflow(input) if _positional(workflow) else workflow()
        if not isinstance(generator, GeneratorType):
            what = f"{workflow!r:.100} returned {generator!r:.100}, not a generator"
            raise InvalidWorkflow(f"{what}: let the decorator around it return what the function returns")
        self._generator = generator
        self.enter()

    def enter(self) -> None:
        """Say whose workflow runs, whenever another may have run meanwhile."""
        executing.set(self._key)

    def advance(self, value: Any = None) -> Step | Return | Raised:
        """Send the last result in and return what the workflow asks for next, or how it ended."""
        generator = self._generator
        assert generator is not None
        try:
            while True:
                yielded = generator.send(value)
                del value
                request = parse(yielded)
                if request is None:
                    return Raised(InvalidYield(_describe(yielded, generator)))
                if isinstance(request, list):
                    value = request
                elif self._version is None and request.needs:
                    return Raised(NotSupported("this storage", request.needs))
                elif isinstance(request, Version):
                    value = self._version
                else:
                    return request
        except StopIteration as stop:
            return self._ended(stop.value)
        except Exception as error:
            if type(error) is AttributeError and str(error).endswith("_iterator' object has no attribute 'send'"):
                error.add_note("a list of calls is yielded as it is: write `yield [...]`, not `yield from [...]`")
            return Raised(error)

    def _ended(self, value: Any) -> Return | Raised:
        if isinstance(value, dict) and parse(value) is not None:
            return Raised(InvalidYield(_describe_returned(value, self._generator)))
        ended = parse_return(value)
        if self._version is None and ended.needs:
            return Raised(NotSupported("this storage", ended.needs))
        return ended

    def close(self) -> BaseException | None:
        """Leave the workflow where it stands, and return what its ``finally`` bodies raise at that, if anything."""
        try:
            if self._generator is not None:
                self._generator.close()
        except BaseException as error:
            error.add_note(
                "raised while the workflow was left at a pause: `finally` and `with` bodies around a yield run at "
                "every pause, and must neither yield nor fail; make cleanup that is to happen once a step"
            )
            return error
        return None


def check(workflow: object) -> str:
    """Return the name of a workflow.

    Raises:
        InvalidWorkflow: When it is not a generator function of at most one argument; the text says what to write.
    """
    if isinstance(workflow, GeneratorType):
        raise InvalidWorkflow(
            f"{workflow!r:.100} is what calling `{workflow.__name__}` returns: give the function, and its input apart"
        )
    function = _function(workflow)
    if function is None:
        raise InvalidWorkflow(
            f"{workflow!r:.100} is not a function: "
            f"give a generator function, `def workflow(input): ... yield tool(...)`"
        )
    flags = function.__code__.co_flags
    name = function.__name__
    if flags & _ASYNC_GENERATOR:
        raise InvalidWorkflow(f"{name} is an async generator: write `def`, and `yield tool(...)` instead of `await`")
    if is_async(function):
        raise InvalidWorkflow(f"{name} is an async function: write `def`, and `yield tool(...)` instead of `await`")
    if not flags & _GENERATOR:
        raise InvalidWorkflow(f"{name} has no yield, so it is no workflow: `yield tool(...)` where it calls something")
    required = _positional(workflow) - len(function.__defaults__ or ())
    named = set(function.__code__.co_varnames[function.__code__.co_argcount :][: function.__code__.co_kwonlyargcount])
    if required > 1 or named - set(function.__kwdefaults__ or ()):
        raise InvalidWorkflow(
            f"{name} needs more than one argument: a workflow takes one, its input (a dict carries many), or none"
        )
    return name


def name_all(workflows: Iterable[Workflow[Any]]) -> dict[str, Workflow[Any]]:
    """Return the workflows by name, as ``resume`` looks them up.

    Raises:
        InvalidWorkflow: When one is not a workflow, or two share a name.
    """
    if callable(workflows):
        raise InvalidWorkflow(f"workflows= takes several: write workflows=[{check(workflows)}]")
    if not isinstance(workflows, Iterable):
        raise InvalidWorkflow(f"workflows= is a list of generator functions, not {workflows!r:.100}")
    named: dict[str, Workflow[Any]] = {}
    for workflow in workflows:
        name = check(workflow)
        if named.setdefault(name, workflow) is not workflow:
            raise InvalidWorkflow(
                f"two workflows are named {name!r}: an execution finds its workflow by name, so rename one"
            )
    return named


def _function(workflow: object) -> FunctionType | None:
    """Return the function behind a workflow: behind a method, and behind decorators that keep ``__wrapped__``."""
    inner: object = getattr(workflow, "__func__", workflow)
    while (wrapped := getattr(inner, "__wrapped__", None)) is not None:
        inner = wrapped
    return inner if isinstance(inner, FunctionType) else None


def _positional(workflow: object) -> int:
    """Return how many arguments a workflow takes by position, ``self`` left out."""
    function = _function(workflow)
    assert function is not None
    code = function.__code__
    return code.co_argcount - hasattr(workflow, "__self__") or bool(code.co_flags & _VARARGS)


def _describe(yielded: object, generator: Generator[Any, Any, Any]) -> str:
    """Say what was yielded, where, and what may be."""
    inner: Any = generator
    while isinstance(inner.gi_yieldfrom, GeneratorType):
        inner = inner.gi_yieldfrom
    place = f"{inner.gi_code.co_filename}:{inner.gi_frame.f_lineno}"
    meant = [form for key, form in _FORMS.items() if isinstance(yielded, dict) and key in yielded]
    remedy = f"yield {'; or '.join(meant or [*_FORMS.values(), 'a list of nothing but tool(...)'])}"
    if isinstance(yielded, GeneratorType) and yielded.__name__ == "<genexpr>":
        remedy = "yield a list: write [...] instead of (...)"
    elif isinstance(yielded, GeneratorType):
        remedy = f"write `yield from` before {yielded.__name__}(...), which is a generator"
    elif isinstance(yielded, dict) and "__again" in yielded:
        remedy = "write `return again(input)`"
    elif isinstance(yielded, str) and yielded.startswith("__"):
        remedy = "write `yield` instead of `yield from` before a request"
    return f"{inner.gi_code.co_qualname} yielded {yielded!r:.200} ({place}), which is not a request: {remedy}"


def _describe_returned(returned: dict[Any, Any], generator: Any) -> str:
    """Say what was returned, where, and what to write."""
    code = generator.gi_code
    return (
        f"{code.co_qualname} returned {returned!r:.200} ({code.co_filename}), a request that nobody has performed: "
        f"write `return (yield ...)`"
    )
