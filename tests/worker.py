"""A process that runs invocations of one execution on the store at a URL, and can be told where to die.

``python -m tests.worker URL LOG ID [--die POINT] [--budget SECONDS] [--lease SECONDS] [--until-done]``

It prints what each invocation returned.  Every tool call leaves a line in LOG.  At a point to die it sends
itself SIGKILL: nothing of Python runs after that.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from sequential import FlowExecutor, Paused, current, save, stores, tool
from sequential.blocking import Maybe, settle
from sequential.testing import JournalAround

T = TypeVar("T")


def workflow(input: dict[str, int]) -> Generator[Any, Any, Any]:
    total = 0
    for number in range(input["steps"]):
        total += (yield tool("math", "square", {"number": number}))["square"]
        if number % 10 == 5:
            yield save()
    return {"total": total}


class Mortal(JournalAround):
    """A store whose process dies before or after one of its calls."""

    left: int | None = None

    def may_die(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.left is not None:
            self.left -= 1

    async def around(self, what: str, method: Callable[..., Maybe[T]], *arguments: Any, **options: Any) -> T:
        self.may_die()
        done = await settle(method(*arguments, **options))
        self.may_die()
        return done


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("log")
    parser.add_argument("id")
    parser.add_argument("--die", type=int)
    parser.add_argument("--budget", type=float, default=0.0)
    parser.add_argument("--lease", type=float, default=60.0)
    parser.add_argument("--until-done", action="store_true")
    parser.add_argument("--wait", action="store_true")
    options = parser.parse_args()
    storage = Mortal(stores.open(options.url))

    def call(category: str, name: str, input: dict[str, int]) -> Any:
        storage.may_die()
        with open(options.log, "a") as log:
            log.write(f"{current().step} {current().key} {os.getpid()}\n")
        storage.may_die()
        return {"square": input["number"] ** 2}

    flow = FlowExecutor(
        storage, call=call, workflows=[workflow], retain=True, budget=options.budget, lease=options.lease
    )
    if options.wait:
        print("ready", flush=True)
        sys.stdin.readline()
    storage.left = options.die
    outcome: Any = Paused("", -1, "tool")
    while isinstance(outcome, Paused):
        outcome = flow.resume_sync(options.id)
        if not isinstance(outcome, Paused) or outcome.reason != "busy":
            print(json.dumps(outcome), flush=True)
        if not options.until_done:
            break


if __name__ == "__main__":
    main()
