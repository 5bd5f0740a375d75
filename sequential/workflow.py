"""What a workflow is, and what can be wrong with one."""

from collections.abc import Callable, Generator, Iterable
from types import FunctionType, GeneratorType
from typing import Any, TypeVar

from .blocking import is_async
from .errors import InvalidWorkflow
from .requests import Tool, parse

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


def make(workflow: Workflow[Any], input: Any) -> Generator[Any, Any, Any]:
    """Return a workflow's generator; `workflow` is one that `check` has accepted.

    Raises:
        InvalidWorkflow: When a decorator around it makes something else of it.
    """
    generator: object = workflow(input) if _positional(workflow) else workflow()
    if not isinstance(generator, GeneratorType):
        what = f"{workflow!r:.100} returned a {type(generator).__name__}, not a generator"
        raise InvalidWorkflow(f"{what}: let the decorator around it return what the function returns")
    return generator


def check(workflow: object) -> str:
    """Return the name of a workflow.

    Raises:
        InvalidWorkflow: When it is not a generator function of at most one argument; the text says what to write.
    """
    if isinstance(workflow, GeneratorType):
        raise InvalidWorkflow(
            f"a generator is what calling `{workflow.__name__}` returns: give the function, and its input apart"
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


def describe_yielded(yielded: object, generator: Generator[Any, Any, Any]) -> str:
    """Say what kind of value was yielded, where, and what may be."""
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
    what = _kind(yielded)
    return f"{inner.gi_code.co_qualname} yielded {what} ({place}), which is not a request: {remedy}"


def describe_returned(returned: object, generator: Any) -> str:
    """Say which request was returned, where, and what to write."""
    code = generator.gi_code
    return (
        f"{code.co_qualname} returned {_kind(returned)} ({code.co_filename}), a request that nobody has performed: "
        f"write `return (yield ...)`"
    )


def _kind(value: object) -> str:
    """Say what kind of value something is, and quote nothing of it but what belongs to requests."""
    if isinstance(value, dict):
        asked = [key for key in value if isinstance(key, str) and key in {*_FORMS, "__again", "__once"}]
        return f"a dict with {', '.join(asked)}" if asked else "a dict"
    if isinstance(value, (list, tuple)):
        others = [each for each in value if not isinstance(parse(each), Tool)]
        kinds = dict.fromkeys(_kind(each) if isinstance(each, dict) else f"a {type(each).__name__}" for each in others)
        return f"a {type(value).__name__} with {', '.join(kinds)} in it"
    return f"a {type(value).__name__}"
