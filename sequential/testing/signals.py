"""What a Journal must do with signals."""

from __future__ import annotations

from functools import partial

from ..errors import Fenced
from ..storage import CLOSED, Record, Result
from .records import NOW, TURNS, RecordSuite


class SignalTests(RecordSuite):
    """Signals: kept before they are waited for, the first of a name, until they are taken."""

    def signal(self, id: str, name: str, data: bytes = b"1", now: float = NOW) -> tuple[Record | None, bool]:
        """Send a signal."""
        answer: tuple[Record | None, bool] = self.ask(self.storage.signal, id, name, data, now)
        return answer

    def wait_for(self, record: Record, name: str | None) -> Record:
        """Commit that the execution waits for a signal that has not come, and has given its lease back."""
        waiting = record._replace(token=record.token + 1, status="waiting", lease=0.0, due=None, waits=name)
        self.ask(partial(self.storage.commit, absent=name), waiting, record.token)
        return waiting

    def test_the_first_of_a_name_is_kept_and_the_record_stays_as_it_is(self) -> None:
        record = self.create()
        assert self.ask(self.storage.received, record, "yes") is None
        assert self.signal("one", "yes", b"first") == (record, True)
        assert self.signal("one", "yes", b"second") == (record, False)
        assert self.signal("one", "no", b"") == (record, True)
        assert self.ask(self.storage.received, record, "yes") == b"first"
        assert self.ask(self.storage.received, record, "no") == b""
        assert self.ask(self.storage.read, "one") == record

    def test_no_execution_gets_the_signal_of_another(self) -> None:
        records = [self.create(id) for id in ("a", "b", "A")]
        assert self.signal("a", "yes") == (records[0], True)
        assert [self.ask(self.storage.received, record, "yes") for record in records] == [b"1", None, None]
        assert self.signal("nobody", "yes") == (None, False)

    def test_what_is_closed_gets_none(self) -> None:
        for status in sorted(CLOSED):
            record = self.create(status, status=status, lease=0.0)
            assert self.signal(status, "yes") == (record, False)
            assert self.ask(self.storage.received, record, "yes") is None

    def test_an_execution_that_waits_is_due_at_once_when_nobody_has_its_lease(self) -> None:
        waiting = self.wait_for(self.create(), "yes")
        assert self.ask(self.storage.due, NOW + 1000, 5) == []
        assert self.signal("one", "another", now=NOW + 1) == (waiting, True)
        assert self.signal("one", "yes", now=NOW + 2) == (waiting._replace(due=NOW + 2), True)
        assert self.ask(self.storage.due, NOW + 2, 5) == [waiting._replace(due=NOW + 2)]
        held = self.wait_for(self.create("held"), "yes")._replace(token=9, lease=NOW + 60)
        self.ask(self.storage.commit, held, 2)
        assert self.signal("held", "yes") == (held, True)

    def test_no_commit_waits_for_what_has_come(self) -> None:
        record = self.create()
        self.signal("one", "yes")
        waiting = record._replace(token=record.token + 1, lease=0.0, waits="yes")
        assert self.refused(partial(self.storage.commit, absent="yes"), waiting, record.token)
        assert self.ask(self.storage.read, "one") == record
        self.ask(partial(self.storage.commit, absent="no"), waiting, record.token)
        assert self.ask(self.storage.read, "one") == waiting

    def test_what_is_taken_is_gone_and_its_name_closed_until_it_is_waited_for_again(self) -> None:
        record = self.create()
        self.signal("one", "yes")
        new = record._replace(token=2, step=1)
        self.ask(partial(self.storage.commit, taken="yes"), new, 1, Result(0, "wait yes", data=b"1"))
        assert self.ask(self.storage.read, "one") == new
        assert len(self.all_results(new)) == 1
        assert self.ask(self.storage.received, new, "yes") is None
        assert self.signal("one", "yes") == (new, False)
        waiting = self.wait_for(new, "yes")
        assert self.signal("one", "yes", b"2", NOW + 3) == (waiting._replace(due=NOW + 3), True)
        assert self.ask(self.storage.received, waiting, "yes") == b"2"

    def test_a_refused_commit_takes_nothing(self) -> None:
        record = self.create()
        self.signal("one", "yes")
        assert self.refused(partial(self.storage.commit, taken="yes"), record._replace(token=9), 8, Result(0))
        assert self.ask(self.storage.received, record, "yes") == b"1"

    def test_a_restart_keeps_what_was_not_taken_and_opens_all_names(self) -> None:
        record = self.create()
        self.signal("one", "kept", b"kept")
        self.signal("one", "taken")
        taken = record._replace(token=2)
        self.ask(partial(self.storage.commit, taken="taken"), taken, 1)
        new = record._replace(run="a later run", token=3)
        self.ask(self.storage.restart, new, taken)
        assert self.ask(self.storage.received, new, "kept") == b"kept"
        assert self.ask(self.storage.received, new, "taken") is None
        assert self.signal("one", "taken", b"again") == (new, True)

    def test_removing_removes_signals(self) -> None:
        self.create()
        self.signal("one", "yes")
        self.ask(self.storage.remove, "one")
        record = self.create(run="a later run")
        assert self.ask(self.storage.received, record, "yes") is None
        assert self.signal("one", "yes") == (record, True)

    def test_one_of_two_signals_is_the_first(self) -> None:
        other = self.ask(self.another, self.storage)
        record = self.create()
        for turn in range(TURNS):
            found = self.together(
                partial(self.storage.signal, "one", f"s{turn}", b"mine", NOW),
                partial(other.signal, "one", f"s{turn}", b"theirs", NOW),
            )
            assert sorted(kept for _, kept in found) == [False, True], found
            winner = (b"mine", b"theirs")[found.index((record, True))]
            assert self.ask(self.storage.received, record, f"s{turn}") == winner

    def test_a_signal_and_a_wait_at_once_do_not_miss_each_other(self) -> None:
        other = self.ask(self.another, self.storage)
        for turn in range(TURNS):
            record = self.create(f"id-{turn}", due=None)
            waiting = record._replace(token=2, status="waiting", lease=0.0, waits="yes")
            committed, signalled = self.together(
                partial(self.storage.commit, waiting, 1, None, absent="yes"),
                partial(other.signal, record.id, "yes", b"1", NOW + turn),
            )
            assert signalled[1], signalled
            found = self.ask(self.storage.read, record.id)
            refused = isinstance(committed, Fenced)
            assert found == (record if refused else waiting._replace(due=NOW + turn)), (found, committed)
