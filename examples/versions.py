"""Change a workflow while executions of it are under way: ``python examples/versions.py``.

An order was begun before a check for fraud was put in front of the charge.  Deployed carelessly, the change does not
fit what the order has recorded: it is parked, and loses nothing.  With ``version()`` the order ends the way it began,
and new ones take the new way.  ``replay`` finds the careless change before it is deployed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from typing import Any

from sequential import Diverged, FlowExecutor, tool, version
from sequential.stores.memory import MemoryStorage
from sequential.testing import replay

Steps = Generator[Any, Any, list[str]]


class Monday:
    """What was deployed at first."""

    @staticmethod
    def order(input: dict[str, int]) -> Steps:
        """Charge, then ship."""
        charged = yield tool("bank", "charge", input)
        shipped = yield tool("post", "ship", input)
        return [charged, shipped]


class Tuesday:
    """The careless change."""

    @staticmethod
    def order(input: dict[str, int]) -> Steps:
        """Check, charge, then ship."""
        checked = yield tool("bank", "check", input)
        charged = yield tool("bank", "charge", input)
        shipped = yield tool("post", "ship", input)
        return [checked, charged, shipped]


class Wednesday:
    """The change as it should be; once no order of version 1 is left, the old branch can go."""

    @staticmethod
    def order(input: dict[str, int]) -> Steps:
        """Check if this order was begun under version 2 or later, charge, then ship."""
        done: list[str] = []
        if (yield version()) >= 2:
            done.append((yield tool("bank", "check", input)))
        done.append((yield tool("bank", "charge", input)))
        done.append((yield tool("post", "ship", input)))
        return done


def call(category: str, name: str, input: Any) -> str:
    """Perform a tool."""
    return f"{category}.{name}({input['order']})"


def main() -> None:
    """Deploy the three, one after the other, over one store."""
    storage = MemoryStorage()
    monday = FlowExecutor(storage, call=call, workflows=[Monday.order], version=1)
    print(f"Monday:    {monday.execute_sync(Monday.order, 'order-1', {'order': 1})}")
    status = monday.status_sync("order-1")
    assert status is not None
    exported = json.dumps(monday.history_sync("order-1"))

    tuesday = FlowExecutor(storage, call=call, workflows=[Tuesday.order], version=1)
    try:
        tuesday.resume_sync("order-1")
    except Diverged as error:
        print(f"Tuesday:   order-1 recorded {error.recorded!r} at step {error.step}, and {error.asked!r} is asked for")
    parked = tuesday.status_sync("order-1")
    assert parked is not None
    print(f"           it is {parked.status}, and keeps its {parked.step} recorded step")

    wednesday = FlowExecutor(storage, call=call, workflows=[Wednesday.order], version=2, budget=math.inf)
    print(f"Wednesday: order-1 ends as {wednesday.resume_sync('order-1', parked=True)}")
    print(f"           order-2 ends as {wednesday.execute_sync(Wednesday.order, 'order-2', {'order': 2})}")

    for day, workflow in (("Tuesday", Tuesday.order), ("Wednesday", Wednesday.order)):
        try:
            replay(workflow, json.loads(exported), status.input, version=1)
            print(f"In CI:     Monday's history fits {day}'s code")
        except AssertionError as error:
            print(f"In CI:     Monday's history does not fit {day}'s code: {str(error).partition(':')[0]}")


if __name__ == "__main__":
    main()
