"""Stand-ins for what a test must have in its hand."""

from __future__ import annotations

from ..checks import is_number


class FakeClock:
    """Time that moves only when told to, for ``FlowExecutor(..., clock=FakeClock())``.

    Args:
        now: The time to begin with, in seconds since the epoch.

    Raises:
        ValueError: When it is not a number.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = 0.0
        self.advance(now)

    def __call__(self) -> float:
        """Return the time in seconds since the epoch."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Args:
            seconds: How much.

        Raises:
            ValueError: When it is not a number.
        """
        if not is_number(seconds):
            raise ValueError(f"time passes by a number of seconds, not {seconds!r}")
        self.now += seconds
