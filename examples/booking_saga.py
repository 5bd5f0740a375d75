"""A trip of flight, hotel and car: when there is no car, or the customer changes her mind, all is cancelled again.

Run it::

    python examples/booking_saga.py

It starts a process that books, gets no car, begins to cancel the hotel and dies by SIGKILL in the midst of it. A
second process goes on: it books nothing, cancels the hotel under the same idempotency key, and then the flight. Another
trip is booked, and waits to be paid; it is cancelled meanwhile, and undoes what it did before it ends.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from typing import Any

from sequential import FlowExecutor, ToolError, current, tool, wait
from sequential.patterns import retry, saga
from sequential.stores.sqlite import SQLiteStorage
from sequential.tools import Tools

tools = Tools()
answers = ["the line is busy", "there is no car"]


def tell(text: str) -> None:
    """Print which process did what, and under which idempotency key."""
    print(f"  pid {os.getpid()}: {text}, key {current().key}", flush=True)


@tools.add("travel")
def book(what: str, to: str) -> str:
    """Stand in for an airline, a hotel and a garage that has no car in Oslo."""
    tell(f"books the {what}")
    if what == "car" and to == "Oslo":
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
        yield from bookings.do(retry(car, attempts=5, delay=0.1, retry_on=["busy"]), undo=cancelling)
        yield from bookings.do(wait("payment", timeout=3 * 86_400))  # a timeout is an error like any other
    except ToolError as error:  # by now all compensations have run; of a cancellation, this takes no notice
        return f"nothing is booked: {error}"
    return f"booked to {to}"


def work() -> None:
    """Be one process: begin the execution, or go on with it, to its end."""
    flow = FlowExecutor(SQLiteStorage("booking_saga.db"), call=tools, errors="raise", workflows=[trip], budget=math.inf)
    print(f"trip-1: {flow.run_sync(trip, 'trip-1', {'to': 'Oslo'})}")  # asleep between two attempts

    flow.execute_sync(trip, "trip-2", {"to": "Rome"})
    flow.cancel_sync("trip-2")  # as another process may: it asks, and rings
    flow.resume_sync("trip-2")  # what the ring does
    print(f"trip-2: {', '.join(status.status for status in flow.list_sync())}")
    flow.delete_sync("trip-2")  # or flow.purge(), once it is old


def main() -> None:
    """Let one process die, and another one go on."""
    for fate in ("--die", "--live"):
        process = subprocess.Popen([sys.executable, __file__, "--work", fate])
        if process.wait() != -signal.SIGKILL:
            raise SystemExit(process.returncode)
        print(f"pid {process.pid} was killed", flush=True)


if __name__ == "__main__":
    work() if "--work" in sys.argv else main()
