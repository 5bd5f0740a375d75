"""Multi-step workflows that survive in short-lived functions.

A workflow is a plain generator.  An executor performs one tool call, saves the result in your own store,
rings for the next invocation and exits; the next one, on any machine, replays the results and goes on::

    from sequential import FlowExecutor, tool
    from sequential.stores.sqlite import SQLiteStorage

    def workflow(input):
        user = yield tool("api", "user", {"id": input["user_id"]})
        posts = yield tool("api", "posts", {"uid": user["id"]})
        return {"user": user, "posts": posts}

    def call(category, name, input):
        return {"id": input.get("id"), "from": f"{category}.{name}"}

    flow = FlowExecutor(SQLiteStorage("flows.db"), call=call)
    print(flow.execute_sync(workflow, "exec-1", {"user_id": 123}))  # {'paused': 'exec-1', 'step': 0}
"""

from .context import Current, current, run_until
from .errors import (
    AlreadyEnded,
    CallbackFailed,
    Cancelled,
    Damaged,
    Diverged,
    EventLoopNeeded,
    Fenced,
    HookNotConfigured,
    IdInUse,
    InvalidId,
    InvalidName,
    InvalidWorkflow,
    InvalidYield,
    NotEncodable,
    NotInstalled,
    NotSupported,
    SequentialError,
    StorageError,
    ToolError,
    UnknownExecution,
    UnknownTool,
    UnknownWorkflow,
)
from .executor import FlowExecutor
from .hooks import install
from .observe import Event
from .requests import again, save, sleep, tool, version, wait
from .setup import Paused, Status

__all__ = [
    "AlreadyEnded",
    "CallbackFailed",
    "Cancelled",
    "Current",
    "Damaged",
    "Diverged",
    "Event",
    "EventLoopNeeded",
    "Fenced",
    "FlowExecutor",
    "HookNotConfigured",
    "IdInUse",
    "InvalidId",
    "InvalidName",
    "InvalidWorkflow",
    "InvalidYield",
    "NotEncodable",
    "NotInstalled",
    "NotSupported",
    "Paused",
    "SequentialError",
    "Status",
    "StorageError",
    "ToolError",
    "UnknownExecution",
    "UnknownTool",
    "UnknownWorkflow",
    "again",
    "current",
    "install",
    "run_until",
    "save",
    "sleep",
    "tool",
    "version",
    "wait",
]
