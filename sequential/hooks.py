"""The two hooks that connect a flow to the world, and their process-wide slots.

``call(category, name, input)`` performs a tool; ``resume(id)`` hands the id over to the next invocation
and returns quickly.  Either may be a plain or an ``async`` function, and asks `sequential.current` for the step that
it is called for: the one to be performed, or the one with which the next invocation begins.

The slots are the only mutable global state of the library, and are looked at when a hook is needed, so
that setting one takes effect at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from .checks import check_functions
from .errors import HookNotConfigured

Call = Callable[[str, str, Any], Any]
Resume = Callable[[str], Any]

__call: Call | None = None
__resume: Resume | None = None


class install:  # noqa: N801 - it is used as a verb; being a class makes `with install(...)` the same thing
    """Set the process-wide hooks; as a ``with`` block, put the earlier ones back at its end.

    Args:
        call: Performs a tool, ``call(category, name, input) -> result``; left out, the slot stays as it is.
        resume: Hands an execution over to the next invocation, ``resume(id)``; left out, likewise.

    Raises:
        TypeError: When one of them cannot be called.
    """

    def __init__(self, *, call: Call | None = None, resume: Resume | None = None) -> None:
        check_functions(call=call, resume=resume)
        self._before = {slot: globals()[slot] for slot in ("__call", "__resume")}
        globals().update({slot: hook for slot, hook in (("__call", call), ("__resume", resume)) if hook is not None})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        globals().update(self._before)


def find_call(asked: str) -> Call:
    """Return the process-wide hook that performs tools.

    Args:
        asked: The tool that is to be performed, for the error's text.

    Raises:
        HookNotConfigured: When there is none.
    """
    # Read by string: the literal name would be renamed by Python if this ever moved into a class body.
    hook: Call | None = globals()["__call"]
    if hook is not None:
        return hook
    stray = next((name for name in globals() if name.endswith("__call") and name != "__call"), None)
    raise HookNotConfigured(
        f"{asked} cannot be performed, because no call hook is configured: pass FlowExecutor(..., call=f), or "
        f"sequential.install(call=f), where f(category, name, input) performs a tool and returns its result"
        + (f" (found {stray!r}: inside a class body Python renames __call so; use sequential.install)" if stray else "")
    )


def refuse_unfit(hook: Call, asked: str, error: BaseException) -> None:
    """Raise if a hook was called with what it does not take, for no tool has raised then.

    Args:
        hook: The hook.
        asked: The tool that was to be performed.
        error: What was raised, caught where the hook was called.

    Raises:
        HookNotConfigured: When not a line of the hook has run, for it takes no category, name and input.
    """
    if not isinstance(error, TypeError) or getattr(error.__traceback__, "tb_next", None) is not None:
        return
    from inspect import signature  # noqa: PLC0415 - slow to import, and seldom needed

    try:
        expected = signature(hook)
    except (TypeError, ValueError):  # it does not tell
        return
    try:
        expected.bind("category", "name", {})
    except TypeError as misfit:
        raise HookNotConfigured(
            f"{asked} cannot be performed, because the call hook is not to be called with a category, a name and an "
            f"input ({misfit}): write it as f(category, name, input)"
        ) from error


def find_resume() -> Resume | None:
    """Return the process-wide hook that rings the next invocation, or ``None``."""
    hook: Resume | None = globals()["__resume"]
    return hook
