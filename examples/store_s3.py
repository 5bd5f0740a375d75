"""Executions in S3, or in anything that speaks its language: results of any size, and no database at all.

    python examples/store_s3.py s3://bucket/prefix

It needs the driver: ``pip install -e ".[objects]"``.

Keys, region and endpoint are taken from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT; AWS_ALLOW_HTTP=true for a server without TLS).  A server for trying:
``docker run --rm -p 8333:8333 chrislusf/seaweedfs server -s3``, and a bucket in it:
``aws --endpoint-url http://127.0.0.1:8333 s3 mb s3://bucket``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Generator
from typing import Any

import obstore
from obstore.store import from_url

from sequential import FlowExecutor, StorageError, tool
from sequential.stores.objects import ObjectStorage


def report(input: dict[str, Any]) -> Generator[Any, Any, dict[str, int]]:
    """Render some pages at the same time, then bind them."""
    pages = yield [tool("printer", "render", {"page": page, "size": input["size"]}) for page in range(3)]
    book = yield tool("printer", "bind", {"pages": pages})
    return {"characters": len(book)}


def call(category: str, name: str, input: dict[str, Any]) -> str:
    """Perform a tool."""
    if name == "render":
        return str(input["page"]) * int(input["size"])
    return "".join(input["pages"])


def main(url: str) -> None:
    """Run a workflow with results of some megabytes, and look where they are."""
    store = from_url(url)
    # It checks first that the store honours conditions: some that speak S3's language ignore them.
    storage = ObjectStorage(store)
    flow = FlowExecutor(storage, call=call, budget=math.inf, retain=True)
    print(flow.execute_sync(report, "report-1", {"size": 2_000_000}))
    found = [found for page in obstore.list(store, "exec/report-1/") for found in page]
    print(f"{len(found)} objects, {sum(each['size'] for each in found) // 1_000_000} MB")
    flow.delete_sync("report-1")
    left = [found for page in obstore.list(store, "exec/report-1/") for found in page]
    print(f"after delete: {len(left)} objects")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except StorageError as error:
        sys.exit(f"{error}\n{__doc__}")
