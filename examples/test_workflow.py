"""Unit tests of a workflow: in memory, without network, and with its process dying wherever it can.

Run it with ``pytest examples/test_workflow.py``.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from sequential import FlowExecutor, Paused, tool
from sequential.stores.memory import MemoryStorage
from sequential.testing import FakeClock, StorageTests, crash_points, run


def order(input: dict[str, Any]) -> Generator[Any, Any, dict[str, Any]]:
    """Charge a card, then ship; say why if the card is refused."""
    charge = yield tool("bank", "charge", {"card": input["card"], "amount": 20})
    if "__error" in charge:
        return {"shipped": False, "because": charge["__error"]}
    parcel = yield tool("post", "ship", {"to": input["to"]})
    return {"shipped": True, "parcel": parcel["number"]}


def call(category: str, name: str, input: Any) -> Any:
    """Stand in for the bank and the post office."""
    if name == "charge" and input["card"] == "expired":
        raise ValueError("the card has expired")
    return {"number": 7}


def test_a_good_order_is_shipped() -> None:
    assert run(order, {"card": "good", "to": "Ada"}, call=call) == {"shipped": True, "parcel": 7}


def test_a_refused_card_ships_nothing() -> None:
    outcome = run(order, {"card": "expired", "to": "Ada"}, call=call)
    assert outcome == {"shipped": False, "because": "the card has expired"}


def test_one_step_at_a_time() -> None:
    flow = FlowExecutor(MemoryStorage(), call=call)
    outcome = flow.execute_sync(order, "order-1", {"card": "good", "to": "Ada"})
    assert isinstance(outcome, Paused)
    assert outcome == {"paused": "order-1", "step": 0}
    assert [step["asked"] for step in flow.history_sync("order-1")] == ["tool bank.charge"]


def test_it_survives_death_at_any_point() -> None:
    assert crash_points(order, {"card": "good", "to": "Ada"}, call=call) > 30


def test_a_lost_callback_is_rung_again() -> None:
    clock, rung = FakeClock(), list[str]()
    flow = FlowExecutor(MemoryStorage(), call=call, resume=rung.append, clock=clock, workflows=[order])
    flow.execute_sync(order, "order-1", {"card": "good", "to": "Ada"})
    rung.clear()  # lost
    clock.advance(31.0)
    assert flow.sweep_sync() == rung == ["order-1"]


class DictStorage:
    """A storage of one's own, to be tested."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, int]] = {}
        self.results: dict[tuple[str, int], Any] = {}

    def get(self, id: str) -> dict[str, int] | None:
        return self.states.get(id)

    def set(self, id: str, state: dict[str, int]) -> None:
        self.states[id] = state

    def delete(self, id: str) -> None:
        self.states.pop(id, None)
        for key in [key for key in self.results if key[0] == id]:
            del self.results[key]

    def get_result(self, id: str, step: int) -> Any:
        return self.results[id, step]

    def set_result(self, id: str, step: int, data: Any) -> None:
        self.results[id, step] = data


class TestDictStorage(StorageTests):
    """The shipped conformance suite, run on it."""

    def make(self) -> DictStorage:
        return DictStorage()
