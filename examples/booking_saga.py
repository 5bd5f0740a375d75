"""A trip of flight, hotel and car: when there is no car, hotel and flight are cancelled, come what may.

Run it::

    python examples/booking_saga.py

It starts a process that books, gets no car, begins to cancel the hotel and dies by SIGKILL in the midst of it. A
second process goes on: it books nothing, cancels the hotel under the same idempotency key, and then the flight.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from typing import Any

from sequential import FlowExecutor, Paused, current, tool
from sequential.patterns import ToolError, retry, saga
from sequential.stores.sqlite import SQLiteStorage
from sequential.tools import Tools

tools = Tools()
answers = ["the line is busy", "there is no car"]


def tell(text: str) -> None:
    """Print which process did what, and under which idempotency key."""
    print(f"  pid {os.getpid()}: {text}, key {current().key}", flush=True)


@tools.add("travel")
def book(what: str, to: str) -> str:
    """Stand in for an airline, a hotel and a garage that has no car."""
    tell(f"books the {what}")
    if what == "car":
        raise ValueError(answers.pop(0) if len(answers) > 1 else answers[0])
    return f"{what} to {to}"


@tools.add("travel")
def cancel(booking: str) -> None:
    """Stand in for the other direction; who gets the same key a second time does it once."""
    tell(f"cancels the {booking}")
    if "--die" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)


def trip(input: dict[str, Any]) -> Generator[Any, Any, str]:
    """Book everything, or nothing."""

    def cancelling(booking: str) -> dict[str, Any]:
        return tool("travel", "cancel", {"booking": booking})

    bookings, to = saga(), input["to"]
    try:
        yield from bookings.do(tool("travel", "book", {"what": "flight", "to": to}), undo=cancelling)
        yield from bookings.do(tool("travel", "book", {"what": "hotel", "to": to}), undo=cancelling)
        car = tool("travel", "book", {"what": "car", "to": to})
        yield from bookings.do(retry(car, attempts=5, delay=0.1, retry_on=["busy"]))
    except ToolError as error:  # by now all compensations have run
        return f"nothing is booked: {error}"
    return f"booked to {to}"


def work() -> None:
    """Be one process: begin the execution, or go on with it, to its end."""
    flow = FlowExecutor(SQLiteStorage("booking_saga.db"), call=tools, budget=math.inf, workflows=[trip])
    outcome = flow.execute_sync(trip, "trip-1", {"to": "Oslo"})
    while isinstance(outcome, Paused):  # asleep between two attempts
        time.sleep(0.02)  # in reality a minute, by a cron job
        for id in flow.sweep_sync():
            outcome = flow.resume_sync(id)
    print(f"trip-1: {outcome}")


def main() -> None:
    """Let one process die, and another one go on."""
    for fate in ("--die", "--live"):
        process = subprocess.Popen([sys.executable, __file__, "--work", fate])
        if process.wait() != -signal.SIGKILL:
            raise SystemExit(process.returncode)
        print(f"pid {process.pid} was killed", flush=True)


if __name__ == "__main__":
    work() if "--work" in sys.argv else main()
