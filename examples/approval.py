"""A payment waits until a human says yes; nothing runs meanwhile, be it for minutes or for months.

Run it::

    python examples/approval.py             # two people answer from another process, and one before she is asked
    python examples/approval.py --timeout   # nobody answers

Each line tells which process (pid) did what. Kill it wherever you like, and run it again: it goes on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from typing import Any

from sequential import Event, FlowExecutor, Paused, tool, wait
from sequential.stores.sqlite import SQLiteStorage
from sequential.tools import Tools

DATABASE = "approval.db"
tools = Tools()


@tools.add("mail")
def ask(amount: int) -> None:
    """Stand in for the mail with a link to click."""


@tools.add("bank")
def pay(amount: int) -> str:
    """Stand in for the bank; a real one is given `sequential.current().key` as the idempotency key."""
    return f"receipt for {amount}"


def payment(input: dict[str, Any]) -> Generator[Any, Any, str]:
    """Pay, if somebody says yes in time."""
    yield tool("mail", "ask", {"amount": input["amount"]})
    answer = yield wait("approval", timeout=input["patience"])
    if "__error" in answer:
        return f"not paid: {answer['__error']}"
    receipt = yield tool("bank", "pay", {"amount": input["amount"]})
    return f"{receipt}, approved by {answer['by']}"


def say_yes(id: str, name: str) -> None:
    """Do what the link in the mail does; all it needs is the id and the store."""
    first = FlowExecutor(SQLiteStorage(DATABASE)).signal_sync(id, "approval", {"by": name})
    print(f"  pid {os.getpid()}: {name} says yes to {id}: {'taken' if first else 'too late'}", flush=True)


def show(event: Event) -> None:
    """Print what an invocation does."""
    if event.kind in {"replayed", "called", "paused"}:
        print(f"  pid {os.getpid()}: {event.kind} {event.detail}", flush=True)


def main(timeout: bool) -> None:
    """Start payments, and be the platform that runs an invocation for each ring."""
    rung, outcomes = list[str](), dict[str, Any]()  # a real hook makes an HTTP request, which another process serves
    flow = FlowExecutor(SQLiteStorage(DATABASE), call=tools, resume=rung.append, workflows=[payment], observe=show)

    def serve() -> None:
        while rung:
            id = rung.pop(0)
            outcomes[id] = flow.resume_sync(id)

    terms = {"amount": 90, "patience": 1.0 if timeout else 3 * 24 * 3600}
    id = flow.start_sync(payment, "unanswered" if timeout else "answered", terms)
    serve()
    if isinstance(outcomes[id], Paused):
        print(f"{id}: {outcomes[id].reason}; nothing runs now, and this process might as well end", flush=True)
        if not timeout:
            subprocess.run([sys.executable, __file__, "--say-yes", id, "Ada", "Bob"], check=True)
    while isinstance(outcomes[id], Paused):
        time.sleep(0.05)  # in reality a minute, by a cron job
        for late in flow.sweep_sync():  # what was signalled, or has waited long enough
            print(f"{late}: the sweep rings", flush=True)
        serve()
    print(f"{id}: {outcomes[id]}", flush=True)
    if not timeout:
        early = flow.start_sync(payment, "early", {"amount": 20, "patience": 60})
        say_yes(early, "Eve")
        serve()
        print(f"{early}: {outcomes[early]}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--say-yes"]:
        for person in sys.argv[3:]:
            say_yes(sys.argv[2], person)
    else:
        main(timeout="--timeout" in sys.argv)
