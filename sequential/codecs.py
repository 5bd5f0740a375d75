"""Codecs around another one: for values that take less room, and for values that nobody else can read.

They work with every store, and for results, inputs and signals alike::

    SQLiteStorage("flows.db", codec=Encrypted(Fernet(key), Compressed()))

Ids, names of workflows, tools and signals, and the texts of errors that park an execution stay readable.
"""

from typing import Any, Protocol

from .checks import is_number, is_whole
from .codec import Codec, JSONCodec, fingerprint_by
from .errors import StorageError, describe

_PLAIN, _PACKED = b"\x00", b"\x01"

_SHORTEST = 16
"""Bytes of a key: a shorter one can be guessed."""


class Compressed:
    """What another codec makes, compressed with zlib.

    Args:
        codec: The other codec; strict JSON when left out.
        above: Bytes from which it is worth it; what is shorter stays as it is.
        level: From 1, fast, to 9, small.

    Raises:
        StorageError: From ``loads``, when the bytes are not what ``dumps`` made.
        ValueError: When `above` or `level` cannot be one.
    """

    def __init__(self, codec: Codec | None = None, *, above: int = 512, level: int = 6) -> None:
        if not (is_number(above) and is_whole(level, 1, 9)):
            raise ValueError(f"above= is a number of bytes, and level= from 1 to 9: got {above=} and {level=}")
        self._codec = codec or JSONCodec()
        self._above, self._level = above, level

    def dumps(self, value: Any, /) -> bytes:
        """Encode and compress `value`."""
        from zlib import compress  # noqa: PLC0415 - importing this module is to cost nothing

        data = self._codec.dumps(value)
        return _PLAIN + data if len(data) < self._above else _PACKED + compress(data, self._level)

    def loads(self, data: bytes, /) -> Any:
        """Decompress and decode `data`."""
        from zlib import decompress, error  # noqa: PLC0415

        kind, view = data[:1], memoryview(data)[1:]
        if kind == _PLAIN:
            return self._codec.loads(bytes(view))
        try:
            if kind != _PACKED:
                raise error("no mark of it at the beginning")
            unpacked = decompress(view)
        except error as wrong:
            raise StorageError(
                f"what is stored was not compressed ({describe(wrong)}): read it with the codec it was written with"
            ) from wrong
        del data, view
        return self._codec.loads(unpacked)

    def fingerprint(self, value: Any, /) -> int | None:
        """Return what tells `value` from others: what the other codec says."""
        return fingerprint_by(self._codec)(value)


class Box(Protocol):
    """What encrypts: `cryptography.fernet.Fernet`, or ``MultiFernet`` for keys that change, or your own."""

    def encrypt(self, data: bytes, /) -> bytes:
        """Return `data` in a form that only `decrypt` understands, and that cannot be changed unnoticed."""
        ...

    def decrypt(self, data: bytes, /) -> bytes:
        """Return what `encrypt` was given, or raise any exception."""
        ...


class Encrypted:
    """What another codec makes, encrypted.

    A replay compares what a workflow asks for with checksums of the recorded inputs, and anybody who reads the store
    could confirm a guess with a plain one.  So no checksum is kept but what `key` makes of it.  Without `key`,
    a replay compares the tool only, and `FlowExecutor.execute` takes no notice of another input under the same id.

    Args:
        box: Encrypts and decrypts; ``MultiFernet([new, old])`` writes with the new key and still reads the old.
        codec: The other codec; strict JSON when left out.
        key: At least 16 random bytes for the checksums (HMAC-SHA-256), another key than that of the box.  With a new
            one, what was begun under the old one counts as changed: let it end first.

    Raises:
        StorageError: From ``loads``, when the box refuses the bytes.
        TypeError: When `box` cannot encrypt.
        ValueError: When `key` is too short, or not bytes.
    """

    def __init__(self, box: Box, codec: Codec | None = None, *, key: bytes | None = None) -> None:
        if not (hasattr(box, "encrypt") and hasattr(box, "decrypt")):
            # Not shown, for it may be the key.
            raise TypeError(f"box= encrypts and decrypts, as Fernet(key) does: a {type(box).__name__} does not")
        if key is not None and not (isinstance(key, bytes) and len(key) >= _SHORTEST):
            raise ValueError(f"key= is at least {_SHORTEST} bytes, as secrets.token_bytes(32) makes them")
        self._box, self._codec, self._key = box, codec or JSONCodec(), key

    def dumps(self, value: Any, /) -> bytes:
        """Encode and encrypt `value`."""
        return self._box.encrypt(self._codec.dumps(value))

    def loads(self, data: bytes, /) -> Any:
        """Decrypt and decode `data`."""
        try:
            decrypted = self._box.decrypt(data)
        except Exception as error:
            raise StorageError(
                f"what is stored cannot be decrypted ({type(error).__name__}): give the key that it was encrypted with"
            ) from error
        del data
        return self._codec.loads(decrypted)

    def fingerprint(self, value: Any, /) -> int | None:
        """Return what tells `value` from others to those who have the key, or ``None`` without one."""
        from hmac import digest  # noqa: PLC0415

        plain = fingerprint_by(self._codec)(value)
        if self._key is None or plain is None:
            return None
        return int.from_bytes(digest(self._key, str(plain).encode(), "sha256")[:8], "big") >> 1
