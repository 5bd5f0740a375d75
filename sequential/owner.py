"""Which process holds a lease, and whether it still lives: told on one host, by what its kernel says."""

from __future__ import annotations

import os
from functools import cache


def describe_process() -> str:
    """Return what tells this process from all others, on this host and elsewhere, or nothing if nothing does."""
    return _describe(os.getpid())


@cache
def _describe(pid: int) -> str:
    started = _started(pid)
    return f"{_host()} {pid} {started}" if started else ""


def is_dead(owner: str) -> bool:
    """Whether a process known to have run on this host runs no more."""
    if not owner.startswith(here := f"{_host()} "):
        return False
    pid, _, started = owner.removeprefix(here).partition(" ")
    if not pid.isdecimal() or _started(int(pid)) == started:
        return False
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return False  # it runs under another user, and /proc hides it from this one
    except ProcessLookupError:
        pass
    return True


@cache
def _host() -> str:
    """Return this boot of this host and this view of its process numbers: a container has its own."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            return f"{boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; ``None`` when it is dead, or nobody can tell."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            state, *fields = stat.read().rpartition(") ")[2].split()
    except OSError:
        return None
    return None if state in {"Z", "X"} else fields[18]
