"""A storage of your own: five methods, nothing to inherit, over whatever you have. Here, a `shelve` file."""

from __future__ import annotations

import shelve
import sys
from collections.abc import Generator
from typing import Any

from sequential import FlowExecutor, Paused, tool


class ShelveStorage:
    """Executions in a `shelve` file of the standard library."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, id: str) -> dict[str, int] | None:
        """Return how far an execution has come."""
        with shelve.open(self.path) as shelf:
            return shelf.get(id)

    def set(self, id: str, state: dict[str, int]) -> None:
        """Keep how far it has come."""
        with shelve.open(self.path) as shelf:
            shelf[id] = state

    def delete(self, id: str) -> None:
        """Forget it and its results."""
        with shelve.open(self.path) as shelf:
            for key in [key for key in shelf if key == id or key.startswith(f"{id}/")]:
                del shelf[key]

    def get_result(self, id: str, step: int) -> Any:
        """Return the result of a step."""
        with shelve.open(self.path) as shelf:
            return shelf[f"{id}/{step}"]

    def set_result(self, id: str, step: int, data: Any) -> None:
        """Keep the result of a step."""
        with shelve.open(self.path) as shelf:
            shelf[f"{id}/{step}"] = data


def workflow(input: dict[str, int]) -> Generator[Any, Any, int]:
    """Square a number twice."""
    once = yield tool("math", "square", {"number": input["number"]})
    twice = yield tool("math", "square", {"number": once})
    return int(twice)


def call(category: str, name: str, input: Any) -> int:
    """Perform the only tool there is."""
    return int(input["number"]) ** 2


def main(path: str) -> None:
    """Run to the end, one invocation after the other."""
    storage = ShelveStorage(path)
    outcome: Any = Paused("square", -1, "tool")
    while isinstance(outcome, Paused):
        # A new executor each time, as in a new process: all it knows is in the storage.
        outcome = FlowExecutor(storage, call=call).execute_sync(workflow, "square", {"number": 3})
        print(outcome, storage.get("square"))


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["own_storage.shelf"]))
