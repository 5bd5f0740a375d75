"""How much memory large results take: the peak of the whole process, SQLite's own buffers included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.table import Found, Row, directory

STEPS = 50
SIZE = 20_000_000

CODE = """if True:
    import json, math, sys
    from sequential import FlowExecutor, tool
    from sequential.stores.sqlite import SQLiteStorage

    path, shape, mode = sys.argv[1:]
    steps, size = {steps}, {size}

    def make(number):
        if shape == "text in a dict":
            return {{"number": number, "text": "x" * size}}
        return ["%0999d" % item for item in range(size // 1000)]

    def workflow():
        for number in range(steps):
            yield tool("api", "large", {{"number": number}})
        yield tool("api", "last", {{}})

    def call(category, name, input):
        if name == "last":
            raise SystemExit if mode == "live" else Replayed
        return make(input["number"])

    class Replayed(BaseException):
        pass

    def memory(field):
        with open("/proc/self/status") as status:
            return 1024 * int(next(line for line in status if line.startswith(field)).split()[1])

    storage = SQLiteStorage(path)
    flow = FlowExecutor(storage, call=call, budget=math.inf)
    storage.read("open it")
    json.loads(json.dumps({{"warm": "up"}}))
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    start = memory("VmRSS")
    try:
        flow.execute_sync(workflow, "x")
    except BaseException:
        pass
    print(json.dumps(memory("VmHWM") - start))
"""


def peak(path: Path, shape: str, mode: str, **environment: str) -> float:
    """Return the megabytes of the peak above the start, in a process of its own."""
    command = [sys.executable, "-c", CODE.format(steps=STEPS, size=SIZE), str(path), shape, mode]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment)
    return float(json.loads(done.stdout)) / 1e6


def memory() -> Found:
    """Live and on replay, for one large text and for many small ones; the workflow drops every value."""
    rows: list[Row] = []
    for shape in ("text in a dict", "many texts in a list"):
        with directory() as path:
            for mode in ("live", "replay"):
                # A fixed threshold makes malloc give large blocks back at once: this is what is in use.
                name = f"{STEPS} x {SIZE // 10**6} MB, {shape}, {mode}"
                used = peak(path / "flows.db", shape, mode, MALLOC_MMAP_THRESHOLD_="131072")
                rows.append(Row(name, "MB", used, SIZE / 1e6, "the size of one result", 3.0))
                kept = peak(path / "kept.db", shape, mode)
                what = "the same, with what malloc keeps for later by its own rules"
                rows.append(Row("  and kept by malloc", "MB", kept, used, what))
    return rows, []
