"""Whether a workflow that begins ``again`` and again stays small: the file, and the memory of its process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.table import Found, Row, directory

FEW, MANY = 1_000, 100_000

CODE = """if True:
    import json, math, os, sys
    from sequential import FlowExecutor, again, tool
    from sequential.stores.sqlite import SQLiteStorage

    path, few, many = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

    def workflow(input):
        yield tool("api", "call", {"number": input["n"]})
        return again({"n": input["n"] + 1}) if input["n"] < many else None

    def memory():
        with open("/proc/self/status") as status:
            return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])

    def call(category, name, input):
        if input["number"] in (few, many):
            print(json.dumps([memory(), sum(os.path.getsize(path + end) for end in ("", "-wal"))]))
        return {"text": "x" * 188}

    FlowExecutor(SQLiteStorage(path, synchronous="NORMAL"), call=call, budget=math.inf).execute_sync(workflow, "x", {"n": 1})
"""


def rounds() -> Found:
    """One execution of many rounds in one process."""
    with directory() as path:
        command = [sys.executable, "-c", CODE, str(Path(path) / "flows.db"), str(FEW), str(MANY)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    (few_memory, few_size), (many_memory, many_size) = map(json.loads, done.stdout.splitlines())
    what = f"the same after {FEW:,} rounds"
    return [
        Row(f"memory after {MANY:,} rounds", "MB", many_memory / 1e6, few_memory / 1e6, what, 1.05),
        Row(f"file and log after {MANY:,} rounds", "MB", many_size / 1e6, few_size / 1e6, what, 1.05),
    ], []
