"""What an invocation returns that did not come to the workflow's end."""

from typing import Any


class Paused(dict[str, Any]):
    """What ``execute`` and ``resume`` return when the workflow has not ended: ``{"paused": id, "step": n}``.

    Args:
        id: The execution's id.
        step: The index of the last step performed; -1 before the first.
        reason: Why it paused: ``"tool"``, ``"save"``, ``"sleep"``, ``"wait"``, ``"budget"``, or ``"busy"`` when
            another invocation holds the lease and nothing was run.
    """

    __slots__ = ("reason",)

    def __init__(self, id: str, step: int, reason: str) -> None:
        super().__init__(paused=id, step=step)
        self.reason = reason
