"""What an executor tells the world about itself: to ``observe``, or what must not be silent to a log."""

from collections.abc import Callable
from sys import modules
from typing import NamedTuple

from .record import Record


class Event(NamedTuple):
    """One thing that happened, as ``observe`` receives it."""

    kind: str
    """``claimed``, ``replayed``, ``called``, ``committed``, ``paused``, ``rang``, ``ring failed``, ``not rung`` (the
    hook returned ``False``, to leave it to the sweep), ``finished``, ``failed``, ``fenced``, ``diverged``, ``stuck``,
    ``input changed``, ``signalled``, ``restarted``, ``released`` (without progress, by an error that is not recorded)
    or ``cancelled``."""
    id: str
    step: int
    """How many steps are recorded."""
    detail: str = ""
    """What was called, how many steps were replayed, why it paused, what went wrong."""
    error: BaseException | None = None
    """What was raised, by the tool that was ``called`` too: the workflow gets but its text."""


class Observer:
    """Where events go.

    Args:
        observe: Called with each `Event`; ``None``: only failures nobody would learn of otherwise are kept, in
            the ``sequential`` logger, and what tools raise, as information.  What it raises is logged and harms no
            execution.
    """

    __slots__ = ("_observe", "listens")

    def __init__(self, observe: Callable[[Event], object] | None) -> None:
        self._observe = observe
        self.listens = observe is not None

    def tell(self, kind: str, record: Record, detail: str = "", error: BaseException | None = None) -> None:
        """Tell of an event."""
        if self._observe is not None:
            try:
                self._observe(Event(kind, record.id, record.step, detail, error))
            except Exception as raised:
                _log(f"the observer raised at {kind!r}", record, repr(raised), raised)
        elif kind in {"ring failed", "stuck"}:
            _log(kind, record, detail, error)
        elif kind == "called" and "logging" in modules:  # if not, nobody has asked for information
            _log("a tool raised", record, detail, error, _INFO)


_INFO, _WARNING = 20, 30
"""As `logging` has them, which is slower to import than all of this library, and seldom needed."""


def _log(what: str, record: Record, detail: str, error: BaseException | None, level: int = _WARNING) -> None:
    import logging  # noqa: PLC0415 - see above

    text = "%s: execution %r, step %d: %s"
    logging.getLogger("sequential").log(level, text, what, record.id, record.step, detail, exc_info=error)
