"""Run benchmarks, print one table, and write it as JSON on demand."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.benchmarks import hop, kernel, memory, process, rounds, store
from tests.benchmarks.table import Row, print_table

BENCHMARKS = {
    "import": process.import_time,
    "process": process.fresh_process,
    "kernel": kernel.kernel,
    "sqlite": store.throughput,
    "invocations": store.invocations,
    "memory": memory.memory,
    "rounds": rounds.rounds,
    "hop": hop.hop,
}


def main() -> None:
    """Run what was asked for, or everything."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of {', '.join(BENCHMARKS)}; all if left out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is named {unknown[0]!r}: choose among {', '.join(BENCHMARKS)}")
    rows: list[Row] = []
    notes: list[str] = []
    for name in options.names or BENCHMARKS:
        found, said = BENCHMARKS[name]()
        rows += found
        notes += said
    print_table(rows)
    print("\n".join(notes))
    if options.json:
        options.json.write_text(
            json.dumps([row._asdict() | {"ratio": row.ratio, "met": row.met} for row in rows], indent=1)
        )


if __name__ == "__main__":
    main()
