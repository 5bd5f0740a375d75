"""Codecs around another one: for values that take less room, and for values that nobody else can read.

They work with every store, and for results, inputs and signals alike::

    SQLiteStorage("flows.db", codec=Encrypted(Fernet(key), Compressed()))

Ids, names of workflows, tools and signals, and the texts of errors that park an execution stay readable.
"""

from typing import Any, Protocol

from .codec import Codec, JSONCodec
from .errors import StorageError, describe, message_of
from .storage import is_number, is_whole

_PLAIN, _PACKED = b"\x00", b"\x01"


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

    Args:
        box: Encrypts and decrypts; ``MultiFernet([new, old])`` writes with the new key and still reads the old.
        codec: The other codec; strict JSON when left out.

    Raises:
        StorageError: From ``loads``, when the box refuses the bytes.
        TypeError: When `box` cannot encrypt.
    """

    def __init__(self, box: Box, codec: Codec | None = None) -> None:
        if not (hasattr(box, "encrypt") and hasattr(box, "decrypt")):
            # Not shown, for it may be the key.
            raise TypeError(f"box= encrypts and decrypts, as Fernet(key) does: a {type(box).__name__} does not")
        self._box, self._codec = box, codec or JSONCodec()

    def dumps(self, value: Any, /) -> bytes:
        """Encode and encrypt `value`."""
        return self._box.encrypt(self._codec.dumps(value))

    def loads(self, data: bytes, /) -> Any:
        """Decrypt and decode `data`."""
        try:
            decrypted = self._box.decrypt(data)
        except Exception as error:
            raise StorageError(
                f"what is stored cannot be decrypted ({message_of(error)}): give the key that it was encrypted with"
            ) from error
        del data
        return self._codec.loads(decrypted)
