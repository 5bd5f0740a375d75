"""Running scripts on a client of redis-py, of whichever kind, and saying what to do about what it raises."""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from typing import TYPE_CHECKING, Any, TypeAlias

from ..blocking import is_async
from ..errors import StorageError
from ..storage import settle
from .redis_pipeline import Pipeline

if TYPE_CHECKING:
    import redis
    import redis.asyncio

Client: TypeAlias = "redis.Redis | redis.asyncio.Redis | redis.RedisCluster | redis.asyncio.RedisCluster"

_REMEDIES = (
    (("OutOfMemoryError", "OOM "), "raise its maxmemory, with maxmemory-policy noeviction"),
    (("ReadOnlyError", "READONLY "), "it takes no writes: connect to the primary"),
    (("CrossSlot", "CROSSSLOT ", "MovedError", "MOVED "), "it is part of a cluster: give a RedisCluster client"),
    (
        ("NoPermissionError", "NOPERM ", "ACL failure in script", "The user executing the script"),
        "allow this user the keys of the prefix (exec:*, in a cluster {exec:}* too), scripts, and the commands in them",
    ),
    (("MISCONF ",), "it cannot write to its disk: look into its log"),
    (("NOREPLICAS ",), "it has fewer replicas than its min-replicas-to-write asks for"),
    (("AuthenticationError", "NOAUTH ", "WRONGPASS "), "give the client its username= and password="),
    (("MaxConnectionsError", "No connection available"), "give the client more connections, or call fewer at once"),
    (("WRONGTYPE ",), "another program has keys like these: give a prefix= of your own"),
    (("TTL exhausted", "TRYAGAIN "), "it moves this execution to another node: try again, nothing was recorded"),
    (("TimeoutError",), "check that it runs and can be reached, or give the client a longer socket_timeout="),
    (("ConnectionError", "ClusterDownError", "RedisClusterException"), "check that it runs and can be reached"),
    (("RedisError", "ValkeyError"), "nothing was recorded"),
)
"""What to do, by words in what was raised: the classes of redis-py and valkey-py, what a server says in a script."""


class Scripts:
    """Runs scripts by their names.

    Args:
        client: A client of redis-py or valkey-py, plain or ``async``, of a server or of a cluster.

    Raises:
        TypeError: When `client` is none.
        ValueError: When it decodes what it reads.
    """

    def __init__(self, client: Client) -> None:
        is_client = hasattr(client, "get_encoder") and hasattr(client, "execute_command")
        if not is_client or hasattr(client, "execute") or isinstance(client, type):
            raise TypeError(
                f"client= is a client of redis-py, like redis.Redis(), and {client!r} is none: "
                f"from a URL, a storage is made by RedisStorage.from_url(url)"
            )
        self.client: Any = client
        if self.client.get_encoder().decode_responses:
            raise ValueError("client= decodes what it reads, and results are bytes: give one without decode_responses")
        self.is_async, self.is_cluster = is_async(self.client.execute_command), hasattr(client, "get_nodes")
        self._runner: Any = Pipeline(client) if self.is_async and not self.is_cluster else client

    async def close(self) -> None:
        """Close the client."""
        await settle(self.client.aclose() if self.is_async else self.client.close())

    async def run(self, script: str, keys: tuple[bytes, ...], *values: str | bytes) -> Any:
        """Run a script, which the server knows by its name unless it was started anew.

        Args:
            script: Its text.
            keys: What it has as ``KEYS``.
            values: What it has as ``ARGV``.

        Raises:
            StorageError: With what the server or the driver said, and the remedy.
        """
        try:
            try:
                answer = self._runner.evalsha(_digest(script), len(keys), *keys, *values)
                return await answer if hasattr(answer, "__await__") else answer
            except Exception as error:
                if type(error).__name__ != "NoScriptError":
                    raise
                return await settle(self.client.eval(script, len(keys), *keys, *values))
        except BaseException as error:
            if not self.is_async and type(error).__module__.partition(".")[0] not in {"redis", "valkey"}:
                self._disconnect()
            said = f"{' '.join(kind.__name__ for kind in type(error).__mro__)} {error}"
            remedy = next((remedy for words, remedy in _REMEDIES if any(word in said for word in words)), None)
            if remedy is None:
                raise
            raise StorageError(f"Redis: {' '.join(str(error).split())}: {remedy}") from error

    def _disconnect(self) -> None:
        """Let go of idle connections: where a signal handler raises, the driver keeps one with an answer unread."""
        nodes = [node.redis_connection for node in self.client.get_nodes()] if self.is_cluster else [self.client]
        for client in filter(None, nodes):
            client.connection_pool.disconnect(False)  # what other threads use is left to them
            if client.connection:
                client.connection.disconnect()


@cache
def _digest(script: str) -> str:
    return sha1(script.encode(), usedforsecurity=False).hexdigest()
