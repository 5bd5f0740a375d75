"""Signatures in the format of Standard Webhooks 1.0 (https://www.standardwebhooks.com).

What is signed is ``id.timestamp.body``, by HMAC-SHA256, with each of several secrets; a signature by any of them is
good, so that one can be replaced by another while both are in use.
"""

import hmac
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from os import urandom
from typing import TypeAlias

Secret: TypeAlias = str | bytes | Iterable[str | bytes]
"""A secret, ``"whsec_..."`` or bytes; or several, while one replaces another."""

TOLERANCE = 300
"""Seconds by which the two clocks, and the way between them, may differ."""

_PREFIX = "whsec_"
_SHORTEST, _LONGEST = 24, 64
"""Bytes of a secret, by the standard."""

_DIGITS = 15
"""Of a time that a float holds."""

_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
"""The last one is one or more of ``v1,`` and 44 characters of base 64, with a space in between."""


class BadSignature(Exception):
    """The headers do not prove that a request was sent by who knows the secret; the text says why."""


def new_secret() -> str:
    """Return a secret that nobody can guess, ``"whsec_..."``, to be kept where both sides find it."""
    return _PREFIX + b64encode(urandom(32)).decode()


class Signer:
    """Signs messages, and checks signatures.

    Args:
        secret: One or several: each signs, a signature by any is good.

    Raises:
        ValueError: When it is not a secret; the text says how to make one.
    """

    def __init__(self, secret: Secret) -> None:
        several = [secret] if isinstance(secret, (str, bytes)) else list(secret)
        self._keys = [_key(each) for each in several]
        if not self._keys:
            raise ValueError(f"secret= has no secret in it: {_REMEDY}")

    def sign(self, id: str, now: float, body: bytes) -> dict[str, str]:
        """Return the headers that prove who sent `body`, and when.

        Args:
            id: The message's id.
            now: The time in seconds since the epoch.
            body: What is sent.
        """
        timestamp = str(int(now))
        signatures = " ".join(_signature(key, id, timestamp, body) for key in self._keys)
        return dict(zip(_HEADERS, (id, timestamp, signatures), strict=True))

    def check(self, headers: Mapping[str, str], now: float, body: bytes) -> str:
        """Return the id of a message whose headers prove who sent it, and that it was not long ago.

        Args:
            headers: The request's, by names in lower case.
            now: The time in seconds since the epoch.
            body: What was received.

        Raises:
            BadSignature: When they do not.
        """
        if missing := [name for name in _HEADERS if not headers.get(name)]:
            raise BadSignature(f"the header {missing[0]} is missing")
        id, timestamp, signatures = (headers[name] for name in _HEADERS)
        if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= _DIGITS):
            raise BadSignature("the header webhook-timestamp is not a whole number of seconds")
        # All of them are computed and compared, so that the time it takes tells nothing of which one is near.
        good = False
        for key in self._keys:
            expected = _bytes(_signature(key, id, timestamp, body))
            for given in signatures.split(" "):
                good |= hmac.compare_digest(_bytes(given), expected)
        if not good:
            raise BadSignature("the signature is not one of this body by this secret")
        if abs(late := now - int(timestamp)) > TOLERANCE:
            when = f"{late:.0f} seconds old" if late > 0 else f"{-late:.0f} seconds ahead of this clock"
            raise BadSignature(f"the signature is {when}, and {TOLERANCE} are allowed")
        return id


def signer_for(who: str, secret: Secret | None, insecure: bool) -> Signer | None:
    """Return what signs by a secret and checks by it, or ``None`` if there is none on purpose.

    Args:
        who: Needs it, for the error's text.
        secret: The secret.
        insecure: Whether there is none.

    Raises:
        ValueError: When it is neither, or both.
    """
    if (secret is None) is not insecure:
        raise ValueError(
            f"{who} needs secret=, the same as the other side's (sequential.http.new_secret() makes one), or else "
            "insecure=True, if something before the handler checks who rings: one of the two"
        )
    return None if secret is None else Signer(secret)


_REMEDY = "make one with sequential.http.new_secret(), and give it to both sides"


def _key(secret: str | bytes) -> bytes:
    """Return a secret's bytes; what is given is never part of an error's text."""
    if isinstance(secret, str):
        try:
            key = b64decode(secret.removeprefix(_PREFIX), validate=True)
        except ValueError:
            raise ValueError(f"secret= is not {_PREFIX}... in base 64: {_REMEDY}") from None
    elif isinstance(secret, bytes):
        key = secret
    else:
        raise TypeError(f"secret= is str or bytes, or several of them, not of type {type(secret).__name__}: {_REMEDY}")
    if not _SHORTEST <= len(key) <= _LONGEST:
        raise ValueError(f"secret= has {len(key)} bytes, not {_SHORTEST} to {_LONGEST}: {_REMEDY}")
    return key


def _signature(key: bytes, id: str, timestamp: str, body: bytes) -> str:
    digest = hmac.digest(key, b".".join((_bytes(id), _bytes(timestamp), body)), "sha256")
    return f"v1,{b64encode(digest).decode()}"


def _bytes(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # whatever a header holds, it is refused and no error
