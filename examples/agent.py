"""An AI agent's loop of model and tools: a crash never asks the model again for what it has said.

Run it::

    python examples/agent.py

The model is a tool like any other, by default a script. The process dies by SIGKILL just after an e-mail has left; a
second process goes on: it repeats neither the questions to the model nor the e-mail. With ``MODEL_URL`` (the address
of an HTTP chat-completions endpoint), ``MODEL_NAME`` and ``MODEL_KEY`` in the environment, a real model answers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from typing import Any

from sequential import FlowExecutor, tool
from sequential.patterns import retry
from sequential.stores.sqlite import SQLiteStorage
from sequential.tools import Tools

TASK = "Send Ada an e-mail about the weather where she is."
OFFERED = {"find_person": ["name"], "find_weather": ["city"], "send_email": ["to", "text"]}
SCRIPT: list[dict[str, Any]] = [
    {"find_person": {"name": "Ada"}, "find_weather": {"city": "Oslo"}},
    {"send_email": {"to": "ada@example.org", "text": "It is raining in Oslo."}},
    {},
]
tools = Tools()


def tell(text: str) -> None:
    """Print which process did what."""
    print(f"  pid {os.getpid()}: {text}", flush=True)


@tools.add("model")
def reply(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the model's next message."""
    tell(f"asks the model, {len(messages)} messages")
    if "MODEL_URL" in os.environ:
        return real_model(messages)
    asked = SCRIPT[sum(message["role"] == "assistant" for message in messages)].items()
    functions = [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in asked]
    calls = [{"id": each["name"], "type": "function", "function": each} for each in functions]
    return {"role": "assistant", "content": f"What I heard last: {messages[-1]['content']}", "tool_calls": calls}


def real_model(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Ask a real model: put any client here that takes a list of messages and returns one."""
    schemas = {
        name: {"type": "object", "properties": {each: {"type": "string"} for each in names}, "required": names}
        for name, names in OFFERED.items()
    }
    offered = [{"type": "function", "function": {"name": name, "parameters": schemas[name]}} for name in OFFERED]
    body = {"model": os.environ.get("MODEL_NAME"), "messages": messages, "tools": offered}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('MODEL_KEY')}"}
    request = urllib.request.Request(os.environ["MODEL_URL"], json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=100) as response:
        message: dict[str, Any] = json.load(response)["choices"][0]["message"]
    return message


@tools.add("agent")
def use(name: str, arguments: str) -> str:
    """Do what the model asks for; its mistakes (no such tool, bad JSON) are errors that it is answered with."""
    tell(f"{name} {arguments}")
    parsed = json.loads(arguments)
    if name == "send_email":
        if "--die" in sys.argv:
            os.kill(os.getpid(), signal.SIGKILL)
        return f"sent to {parsed['to']}"
    return {"find_person": "Ada is in Oslo", "find_weather": "rain"}[name]


def agent(input: dict[str, str]) -> Generator[Any, Any, str]:
    """Let the model ask for tools until it answers."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": input["task"]}]
    for _ in range(20):  # a model may go round in circles
        message = yield from retry(tool("model", "reply", {"messages": messages}), attempts=5)
        if "__error" in message:
            return f"The model is away: {message['__error']}"
        messages.append(message)
        calls = message.get("tool_calls") or []
        if not calls:
            return str(message["content"])
        # An e-mail cannot be taken back, and mail servers know no idempotency keys: hence once=True. If the process
        # dies in the midst of it, the answer is "interrupted", and the model can say that nobody knows.
        asked = [{"name": call["function"]["name"], "arguments": call["function"]["arguments"]} for call in calls]
        results = yield [tool("agent", "use", each, once=each["name"] == "send_email") for each in asked]
        for call, result in zip(calls, results, strict=True):
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)})
    return "The model came to no end."


def work() -> None:
    """Be one process: begin the execution, or go on with it, to its end, asleep while the model is away."""
    flow = FlowExecutor(SQLiteStorage("agent.db"), call=tools)
    print(f"agent-1: {flow.run_sync(agent, 'agent-1', {'task': TASK})}")


def main() -> None:
    """Let one process die, and another one go on."""
    for fate in ("--die", "--live"):
        process = subprocess.Popen([sys.executable, __file__, "--work", fate])
        if process.wait() != -signal.SIGKILL:
            raise SystemExit(process.returncode)
        print(f"pid {process.pid} was killed", flush=True)


if __name__ == "__main__":
    work() if "--work" in sys.argv else main()
