"""A storage of your own over PostgreSQL: five methods, two tables that you may already have, results as JSON.

    python examples/own_postgres_storage.py postgresql://user:password@host/database

It needs the driver: ``pip install -e ".[postgres]"``.

A server for trying: ``docker run --rm -p 5432:5432 -e POSTGRES_HOST_AUTH_METHOD=trust postgres:18``, which is at
``postgresql://postgres@127.0.0.1/postgres``.  The built-in storage promises more: see store_postgres.py.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import psycopg
from psycopg.types.json import Json

from sequential import FlowExecutor, Paused, tool

TABLES = """
CREATE TABLE IF NOT EXISTS executions (id text PRIMARY KEY, step integer NOT NULL);
CREATE TABLE IF NOT EXISTS results (exec_id text, step integer, data json NOT NULL, PRIMARY KEY (exec_id, step));
"""


class OwnPostgresStorage:
    """Executions in two tables.

    Args:
        db: A connection in autocommit mode, so that each statement is kept as soon as it is made.
    """

    def __init__(self, db: psycopg.Connection[tuple[Any, ...]]) -> None:
        self.db = db

    def get(self, id: str) -> dict[str, int] | None:
        """Return how far an execution has come."""
        row = self.db.execute("SELECT step FROM executions WHERE id = %s", (id,)).fetchone()
        return {"step": row[0]} if row else None

    def set(self, id: str, state: dict[str, int]) -> None:
        """Keep how far it has come."""
        self.db.execute(
            "INSERT INTO executions VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET step = EXCLUDED.step",
            (id, state["step"]),
        )

    def delete(self, id: str) -> None:
        """Forget it and its results."""
        self.db.execute("DELETE FROM results WHERE exec_id = %s", (id,))
        self.db.execute("DELETE FROM executions WHERE id = %s", (id,))

    def get_result(self, id: str, step: int) -> Any:
        """Return the result of a step."""
        row = self.db.execute("SELECT data FROM results WHERE exec_id = %s AND step = %s", (id, step)).fetchone()
        return row[0] if row else None

    def set_result(self, id: str, step: int, data: Any) -> None:
        """Keep the result of a step; after a crash it may come a second time."""
        self.db.execute(
            "INSERT INTO results VALUES (%s, %s, %s) ON CONFLICT (exec_id, step) DO UPDATE SET data = EXCLUDED.data",
            (id, step, Json(data)),
        )


def workflow(input: dict[str, int]) -> Generator[Any, Any, dict[str, Any]]:
    """Ask for a user and for what she has posted."""
    user = yield tool("api", "user", {"id": input["user_id"]})
    posts = yield tool("api", "posts", {"uid": user["id"]})
    return {"user": user["name"], "posts": posts}


def call(category: str, name: str, input: Any) -> Any:
    """Perform a tool."""
    return {"id": input["id"], "name": "Ada"} if name == "user" else ["first", "second"]


def main(url: str) -> None:
    """Run to the end, one invocation after the other."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(TABLES)
        outcome: Any = Paused("exec-1", -1, "")
        while isinstance(outcome, Paused):
            # A new executor each time, as in a new process: all it knows is in the database.
            outcome = FlowExecutor(OwnPostgresStorage(db), call=call).execute_sync(workflow, "exec-1", {"user_id": 123})
            print(outcome, db.execute("SELECT step, data FROM results ORDER BY step").fetchall())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except psycopg.Error as error:
        sys.exit(f"{error}\n{__doc__}")
