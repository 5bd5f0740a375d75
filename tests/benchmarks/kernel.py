"""What a step costs in the executor itself, the store being a dict and the tool a constant."""

from __future__ import annotations

import cProfile
import io
import math
import pstats
from collections.abc import Callable, Generator
from typing import Any, cast

from sequential import FlowExecutor, tool
from sequential.codec import JSONCodec, fingerprint
from sequential.stores.memory import MemoryStorage
from tests.benchmarks.table import Found, Row, side_by_side

STEPS = 2000
RESULT = {"text": "x" * 188}  # 200 bytes as JSON, and so is each input
TEXT = "y" * 172


class Stop(BaseException):
    """Ends an invocation before its last step."""


def workflow() -> Generator[Any, Any, None]:
    """Ask for a tool many times."""
    for number in range(STEPS):
        yield tool("api", "call", {"number": number, "text": TEXT})


def performed() -> None:
    """All steps in one invocation."""
    FlowExecutor(MemoryStorage(), call=lambda *_: RESULT, budget=math.inf).execute_sync(workflow, "x")


def replaying() -> Callable[[], None]:
    """Return a function that replays all steps but the last, which stops it."""

    def call(category: str, name: str, input: Any) -> Any:
        if input["number"] == STEPS - 1:
            raise Stop
        return RESULT

    flow = FlowExecutor(MemoryStorage(), call=call, budget=math.inf)

    def replayed() -> None:
        try:
            flow.execute_sync(workflow, "x")
        except Stop:
            return

    replayed()
    return replayed


def bare() -> None:
    """The generator alone."""
    generator, result = workflow(), cast("Any", None)
    try:
        while True:
            generator.send(result)
            result = RESULT
    except StopIteration:
        pass


def coded() -> None:
    """What the codec does for a performed step: the input's fingerprint and copy, the result there and back."""
    codec = JSONCodec()
    for number in range(STEPS):
        fingerprint({"number": number, "text": TEXT})
        codec.loads(codec.dumps({"number": number, "text": TEXT}))
        codec.loads(codec.dumps(RESULT))


def decoded() -> None:
    """What the codec does for a replayed step: the input's fingerprint, the result."""
    codec = JSONCodec()
    data = codec.dumps(RESULT)
    for number in range(STEPS):
        fingerprint({"number": number, "text": TEXT})
        codec.loads(data)


def kernel() -> Found:
    """A performed and a replayed step, the codec's part taken off and shown by itself."""
    runs = (performed, replaying(), bare, coded, decoded)
    perform, replay, floor, code, decode = (1e6 * time / STEPS for time in side_by_side(41, *runs))
    rows = [
        Row(
            "a performed step, codec excluded", "us", perform - code, floor, "generator.send alone", 24.0, "difference"
        ),
        Row("a replayed step, codec excluded", "us", replay - decode, floor, "generator.send alone", 7.0, "difference"),
        Row("the codec's part of a performed step", "us", code, floor, "generator.send alone"),
        Row("the codec's part of a replayed step", "us", decode, floor, "generator.send alone"),
    ]
    return rows, [profile("performed", performed), profile("replayed", replaying())]


def profile(name: str, run: Callable[[], None]) -> str:
    """Return where the time goes, with the profiler's own cost in it."""
    profiler, text = cProfile.Profile(), io.StringIO()
    profiler.runcall(run)
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(12)
    lines = [line for line in text.getvalue().splitlines() if line.strip()][4:]
    return f"\n{STEPS} {name} steps under the profiler:\n" + "\n".join(lines)
