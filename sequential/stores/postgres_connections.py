"""Executing statements on a connection of psycopg, or those of a pool, and saying what to do about what it raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from ..blocking import is_async
from ..errors import StorageError
from ..storage import settle
from .clients import extra

with extra("postgres"):
    import psycopg
    from psycopg.pq import TransactionStatus
    from psycopg.rows import tuple_row

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool, ConnectionPool

Client: TypeAlias = (
    "psycopg.Connection[Any] | psycopg.AsyncConnection[Any] | ConnectionPool[Any] | AsyncConnectionPool[Any]"
)

ATTEMPTS = 10
"""How often a statement is tried that gets in the way of others."""

_IN_THE_WAY = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)

_REMEDIES: tuple[tuple[type[psycopg.Error] | tuple[type[psycopg.Error], ...], str], ...] = (
    (psycopg.errors.UndefinedTable, "its tables are not there: call create_schema() once"),
    (psycopg.errors.UndefinedColumn, "its tables are not those of this release: call create_schema() once"),
    (psycopg.errors.InvalidSqlStatementName, "behind a pooler of transactions, connect with prepare_threshold=None"),
    (psycopg.errors.InsufficientPrivilege, "grant this user what is missing"),
    (psycopg.errors.ReadOnlySqlTransaction, "it takes no writes: connect to the primary"),
    (psycopg.errors.QueryCanceled, "raise statement_timeout, or find out what holds its tables locked"),
    (psycopg.errors.DiskFull, "make room"),
    (_IN_THE_WAY, "use the default isolation, read committed"),
    (
        psycopg.OperationalError,
        "check that it runs and can be reached, that its database is there, and that the pool is large enough",
    ),
)

_YOURS = frozenset({TransactionStatus.INTRANS, TransactionStatus.INERROR})


class Connections:
    """The user's connection, or those of a pool.

    Args:
        client: A connection or a pool of psycopg, plain or ``async``.

    Raises:
        TypeError: When `client` is none.
    """

    def __init__(self, client: Client) -> None:
        if not hasattr(client, "getconn") and not hasattr(client, "pgconn"):
            raise TypeError(
                f"client= is a connection or a pool of psycopg, not {client!r:.100}: "
                f"from a URL, a storage is made by PostgresStorage.from_url(url)"
            )
        self.client = cast("Any", client)
        self._pooled = hasattr(client, "getconn")
        self.is_async = is_async(self.client.getconn if self._pooled else self.client.execute)
        self.cursor: Any = psycopg.AsyncCursor if self.is_async else psycopg.Cursor
        self.idle: dict[Any, Any] = {}
        """Cursors that nobody uses at this moment, by their connections."""

    async def close(self) -> None:
        """Close the connection, or the pool."""
        await settle(self.client.close())

    async def execute(self, sql: str, values: Sequence[Any] | None, *, reads: bool = False, again: bool = False) -> Any:
        """Execute a statement, and return its rows, or how many it has changed.

        Args:
            sql: The statement.
            values: Its values; `None`, and there may be several statements.
            reads: Whether its rows are wanted.
            again: Whether a cursor may be used again, which holds on to the values until then.

        Raises:
            StorageError: With what the server or the driver said, and the remedy.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                connection = await settle(self.client.getconn()) if self._pooled else self.client
                try:
                    _check_connection(connection)
                    cursor = self._take_cursor(connection) if again else self._new_cursor(connection)
                    executed = cursor.execute(sql, values, binary=reads)
                    if self.is_async:  # not by settle(): each layer is gone through whenever the loop goes on with it
                        await executed
                    _check_transaction(connection)  # one of yours may have begun while this waited for its turn
                    found = await settle(cursor.fetchall()) if reads else cursor.rowcount
                    if again:
                        self.idle[connection] = cursor
                except BaseException as error:
                    if not (self.is_async or self._pooled or isinstance(error, (psycopg.Error, StorageError))):
                        _settle_down(connection)
                    raise
                finally:
                    if self._pooled:
                        await settle(self.client.putconn(connection))
            except psycopg.Error as error:
                # Where usual isolation waits, a stricter one undoes the statement: by now the other one is done.
                if not isinstance(error, _IN_THE_WAY) or attempt == ATTEMPTS:
                    raise explain(error) from error
            else:
                return found

    def _take_cursor(self, connection: Any) -> Any:
        """Return a cursor that nobody else uses; to make one takes as long as all that it is given for a step."""
        cursor = self.idle.pop(connection, None)
        if cursor is None:
            for known in [known for known in list(self.idle) if known.closed]:
                self.idle.pop(known, None)
            cursor = self._new_cursor(connection)
        return cursor

    def _new_cursor(self, connection: Any) -> Any:
        return self.cursor(connection, row_factory=tuple_row)


def _settle_down(connection: Any) -> None:
    """Call off a statement that a signal handler has raised from, or the connection would be busy with it for ever."""
    with connection.lock:
        if connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
            connection.cancel()
            while connection.pgconn.get_result() is not None:
                pass


def _check_connection(connection: Any) -> None:
    if not connection.autocommit:
        raise StorageError(
            "PostgreSQL: the connection would wait for a commit of yours: connect with autocommit=True, a pool with "
            'kwargs={"autocommit": True}'
        )
    if connection.pgconn.pipeline_status:
        raise StorageError("PostgreSQL: the connection is in pipeline mode, and answers late: give the storage its own")
    if connection.pgconn.parameter_status(b"client_encoding") != b"UTF8":
        raise StorageError("PostgreSQL: the connection is not in UTF-8: connect with client_encoding='utf-8'")
    _check_transaction(connection)


def _check_transaction(connection: Any) -> None:
    if connection.pgconn.transaction_status in _YOURS:
        raise StorageError("PostgreSQL: the connection is within a transaction of yours: give the storage its own")


def explain(error: psycopg.Error) -> StorageError:
    """Return what was said, and what to do about it."""
    text = " ".join(str(error).split()) or type(error).__name__
    remedy = next((remedy for kind, remedy in _REMEDIES if isinstance(error, kind)), "nothing was recorded")
    return StorageError(f"PostgreSQL: {text}: {remedy}")
