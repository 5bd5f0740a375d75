"""A process that runs invocations of one execution on a SQLite file, and can be told where to die.

``python -m tests.worker PATH LOG ID [--die POINT] [--budget SECONDS] [--until-done]``

It prints what each invocation returned.  Every tool call leaves a line in LOG.  At a point to die it sends
itself SIGKILL: nothing of Python runs after that.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Generator
from typing import Any

from sequential import FlowExecutor, Paused, current, save, tool
from sequential.storage import Record, Result
from sequential.stores.sqlite import SQLiteStorage


def workflow(input: dict[str, int]) -> Generator[Any, Any, Any]:
    total = 0
    for number in range(input["steps"]):
        total += (yield tool("math", "square", {"number": number}))["square"]
        if number % 10 == 5:
            yield save()
    return {"total": total}


class Mortal(SQLiteStorage):
    """A store whose process dies before or after one of its calls."""

    left: int | None = None

    def may_die(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.left is not None:
            self.left -= 1

    def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        self.may_die()
        claimed = super().claim(wanted, now, create)
        self.may_die()
        return claimed

    def commit(self, record: Record, token: int, result: Result | None = None, **signal: str | None) -> None:
        self.may_die()
        super().commit(record, token, result, **signal)
        self.may_die()

    def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
        self.may_die()
        return super().results(record, start, stop)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("log")
    parser.add_argument("id")
    parser.add_argument("--die", type=int)
    parser.add_argument("--budget", type=float, default=0.0)
    parser.add_argument("--until-done", action="store_true")
    parser.add_argument("--wait", action="store_true")
    options = parser.parse_args()
    storage = Mortal(options.path)

    def call(category: str, name: str, input: dict[str, int]) -> Any:
        storage.may_die()
        with open(options.log, "a") as log:
            log.write(f"{current().step} {current().key} {os.getpid()}\n")
        storage.may_die()
        return {"square": input["number"] ** 2}

    flow = FlowExecutor(storage, call=call, workflows=[workflow], retain=True, budget=options.budget)
    if options.wait:
        print("ready", flush=True)
        sys.stdin.readline()
    storage.left = options.die
    outcome: Any = Paused("", 0, "")
    while isinstance(outcome, Paused):
        outcome = flow.resume_sync(options.id)
        print(json.dumps(outcome), flush=True)
        if not options.until_done:
            break


if __name__ == "__main__":
    main()
