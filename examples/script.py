"""In a script: run a workflow to its end, and if the script dies half-way, run it again to go on.

`run_sync` goes on to the end, whatever the workflow waits for; each step is still saved as it is done.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

from sequential import FlowExecutor, tool
from sequential.stores.sqlite import SQLiteStorage


def measure(input: dict[str, Any]) -> Generator[Any, Any, dict[str, int]]:
    """Count the words of several documents, one step for each."""
    counts: dict[str, int] = {}
    for url in input["urls"]:
        words = yield tool("web", "count_words", {"url": url})
        counts[url.rpartition("/")[2]] = -1 if isinstance(words, dict) else words  # a dict is {"__error": ...}
    return counts


def call(category: str, name: str, input: Any) -> int:
    """Perform the only tool there is."""
    print(f"reading {input['url'].rpartition('/')[2]}")
    with urllib.request.urlopen(input["url"], timeout=10) as response:
        return len(response.read().split())


def main(paths: list[str]) -> None:
    """Measure files, as documents of the web."""
    urls = [Path(path).resolve().as_uri() for path in paths]
    flow = FlowExecutor(SQLiteStorage("script.db"), call=call)
    print(json.dumps(flow.run_sync(measure, "measure", {"urls": urls})))


if __name__ == "__main__":
    main(sys.argv[1:] or [__file__])
