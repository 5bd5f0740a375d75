"""Poll a slow job until it is done: asleep between two looks, and with a history that does not grow.

Run it::

    python examples/polling.py

Each round looks once, sleeps and begins anew with `again`. Nothing runs while it is asleep, and a year of rounds
replays no more than one. Kill it wherever you like, and run it again: it goes on with the round it was in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from typing import Any

from sequential import FlowExecutor, Paused, again, sleep, tool
from sequential.stores.sqlite import SQLiteStorage
from sequential.tools import Tools

tools = Tools()


@tools.add("jobs")
def look(job: str, round: int) -> int:
    """Stand in for a job that has come 20 percent further each time."""
    print(f"round {round}: {job} is at {20 * round} percent", flush=True)
    return 20 * round


def watch(input: dict[str, Any]) -> Generator[Any, Any, Any]:
    """Look once; then end, or sleep and begin anew. It prints nothing itself, for it is replayed at each wakening."""
    percent = yield tool("jobs", "look", {"job": input["job"], "round": input["round"]})
    if percent == 100:
        return f"done after {input['round']} rounds"
    yield sleep(0.2)
    return again(input | {"round": input["round"] + 1})


def main() -> None:
    """Start the execution, or go on with it, and be the platform and the cron job."""
    rung: list[str] = []  # a real hook makes an HTTP request, which another process serves
    storage = SQLiteStorage("polling.db")
    flow = FlowExecutor(storage, call=tools, resume=rung.append, workflows=[watch], budget=math.inf)
    id = flow.start_sync(watch, "watch-render", {"job": "render", "round": 1})
    outcome: Any = Paused(id, -1, "tool")
    while isinstance(outcome, Paused):
        while not rung:
            time.sleep(0.02)  # in reality a minute, by a cron job
            flow.sweep_sync()  # rings when the sleep is over
        outcome = flow.resume_sync(rung.pop(0))
        if isinstance(outcome, Paused):
            steps = [step["asked"] for step in flow.history_sync(id)]
            print(f"  paused: {outcome.reason}, history: {steps}", flush=True)
    print(f"{id}: {outcome}")


if __name__ == "__main__":
    main()
