"""Whose lease is void: that of a process of this host which is known to have ended, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from sequential import owner as owners
from sequential.owner import describe_process, is_dead


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    for forget in (owners._host.cache_clear, owners._describe.cache_clear):
        forget()
    yield
    for forget in (owners._host.cache_clear, owners._describe.cache_clear):
        forget()


def test_this_process_lives() -> None:
    assert describe_process().split(" ")[-2] == str(os.getpid())
    assert not is_dead(describe_process())


def test_a_process_that_has_ended_is_dead() -> None:
    code = "from sequential.owner import describe_process; print(describe_process())"
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert is_dead(ended)


def test_another_process_of_the_same_number_is_another() -> None:
    host, number, _ = describe_process().rsplit(" ", 2)
    assert is_dead(f"{host} {number} 1")


def test_of_another_host_nothing_is_known() -> None:
    assert not is_dead("another boot and its numbers 999999999 1")
    assert not is_dead("")


def test_a_process_of_another_user_may_live(monkeypatch: pytest.MonkeyPatch) -> None:
    host, _, _ = describe_process().rsplit(" ", 2)

    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not is_dead(f"{host} 999999999 1")


def test_where_the_kernel_tells_nothing_nobody_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: Any) -> Any:
        raise OSError

    monkeypatch.setattr(owners, "open", unreadable, raising=False)
    assert owners._host() == ""
    assert describe_process() == ""
    assert not is_dead(describe_process())
