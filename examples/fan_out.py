"""Tool calls performed together: each result is saved as it comes, so a crash repeats only what had not come yet.

Run it::

    python examples/fan_out.py

It starts a process that asks for the weather of five cities together, and dies by SIGKILL when two have answered.
A second process goes on: it asks for the other three. Each line tells which process (pid) did it.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from typing import Any

from sequential import Event, FlowExecutor, tool
from sequential.patterns import check
from sequential.stores.sqlite import SQLiteStorage
from sequential.tools import Tools

CITIES = {"Bern": 0.1, "Lima": 0.4, "Oslo": 0.2, "Pune": 0.4, "Rome": 0.4}
"""The cities, and how long it takes to learn about their weather, in seconds."""

tools = Tools()
saved: list[str] = []


def tell(text: str) -> None:
    """Print which process did what."""
    print(f"  pid {os.getpid()}: {text}", flush=True)


@tools.add("weather")
async def ask(city: str) -> dict[str, Any]:
    """Stand in for a slow API."""
    tell(f"asks for {city}")
    await asyncio.sleep(CITIES[city])
    return {"degrees": 3 * len(city), "asked_by": os.getpid()}


def forecast(input: dict[str, Any]) -> Generator[Any, Any, dict[str, Any]]:
    """Ask for all cities together; the answers come in the order of the questions."""
    answers = yield [tool("weather", "ask", {"city": city}) for city in input["cities"]]
    return {city: check(answer) for city, answer in zip(input["cities"], answers, strict=True)}


def note(event: Event) -> None:
    """Tell when a result is saved, and die if that is this process's fate."""
    if event.kind == "committed":
        saved.append(event.detail)
        tell(f"has saved {len(saved)} of what it asked for")
        if "--die" in sys.argv and len(saved) == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def work() -> None:
    """Be one process: begin the execution, or go on with it, to its end."""
    flow = FlowExecutor(SQLiteStorage("fan_out.db"), call=tools, budget=math.inf, observe=note)
    for city, answer in asyncio.run(flow.execute(forecast, "forecast", {"cities": list(CITIES)})).items():
        print(f"{city}: {answer['degrees']} degrees, asked by pid {answer['asked_by']}")


def main() -> None:
    """Let one process die, and another one go on."""
    for fate in ("--die", "--live"):
        process = subprocess.Popen([sys.executable, __file__, "--work", fate])
        if process.wait() != -signal.SIGKILL:
            raise SystemExit(process.returncode)
        print(f"pid {process.pid} was killed", flush=True)


if __name__ == "__main__":
    work() if "--work" in sys.argv else main()
