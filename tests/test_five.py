"""A storage of five methods, seen as a Journal."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from sequential import FlowExecutor, tool
from tests.support import PlainStorage

LARGE = "x" * 600_000


def workflow() -> Generator[Any, Any, Any]:
    sizes = list[int]()
    for number in range(4):
        text = yield tool("api", "large", number)
        sizes.append(len(text))
    return sizes


def test_large_results_are_read_a_few_at_a_time() -> None:
    storage, reads = PlainStorage(), list[int]()
    get_result = storage.get_result

    def watched(id: str, step: int) -> Any:
        reads.append(step)
        return get_result(id, step)

    storage.get_result = watched  # type: ignore[method-assign]
    flow = FlowExecutor(storage, call=lambda *_: LARGE)
    for step in range(4):
        assert flow.execute_sync(workflow, "id") == {"paused": "id", "step": step}
    reads.clear()
    assert flow.execute_sync(workflow, "id") == [600_000] * 4
    assert reads == [0, 1, 2, 3]
