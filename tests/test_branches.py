"""The tree of a workflow in progress: a function of the log, whatever the workflow and the order of the answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sequential import Cancelled, InvalidYield, NotSupported, ToolError, again, save, sleep, tool, version, wait
from sequential.branches import CANCEL, END, Branches, Raised, Returned

Flow = Generator[Any, Any, Any]
Block = list[tuple[Any, ...]]

VERSION = 7


class Broken(Exception):
    """What a workflow raises of its own accord."""


class Seen:
    """What one run of a workflow has been through: its requests that take an answer, and what they came to."""

    def __init__(self, program: Block) -> None:
        self.program = program
        self.asked = 0
        self.answers = list[Any]()


def interpret(seen: Seen) -> Flow:
    """Do what a program says; where it goes, and what it asks with, depends on what it was answered."""
    value = yield from run(seen.program, seen)
    return {"value": value, "after": len(seen.answers)}


def run(block: Block, seen: Seen) -> Flow:  # noqa: C901 - one case for each thing that a program does
    for what, *rest in block:
        last = seen.answers[-1] if seen.answers else None
        match what:
            case "list":
                yield from ask(
                    [tool("api", kind, [i, last], once=kind == "once") for i, kind in enumerate(*rest)], seen
                )
            case "version":
                assert (yield version()) == VERSION
            case "if":
                yield from run(rest[len(repr(last)) % 2], seen)
            case "loop":
                for _ in range(len(repr(last)) % 4):
                    yield from run(rest[0], seen)
            case "try" | "undo":
                try:
                    yield from run(rest[0], seen)
                except Exception if what == "try" else Cancelled as error:  # noqa: B030 - it is one of two classes
                    seen.answers.append(f"caught {error}")
                    yield from run(rest[1], seen)
            case "return":
                return last
            case "raise":
                raise Broken(repr(last))
            case _:
                simple = {"tool": tool("api", "one", last), "sleep": sleep(5), "wait": wait("go", 9), "save": save()}
                yield from ask(simple[what], seen)
    return "end"


def ask(request: Any, seen: Seen) -> Flow:
    seen.asked += 1
    try:
        seen.answers.append((yield request))
    except (ToolError, Cancelled) as error:
        seen.answers.append(told(error))
        raise


def told(error: BaseException | None) -> Any:
    """Return what there is to tell of an error."""
    return error and (type(error).__name__, str(error), list(getattr(error, "__notes__", [])))


def standing(tree: Branches, seen: Seen) -> Any:
    """Return everything that a tree is known by."""
    branches = [
        (each.number, each.count, each.mark, each.asked.label, getattr(each.asked, "input", None), each.since)
        for each in (*tree.calls.values(), *tree.rests.values())
    ]
    ended = tree.ended.value if isinstance(tree.ended, Returned) else tree.ended and told(tree.ended.error)
    return list(tree.calls), list(tree.rests), branches, told(tree.decided), ended, seen.answers


leaves = st.one_of(
    st.sampled_from([("tool",), ("sleep",), ("wait",), ("save",), ("version",), ("return",), ("raise",)]),
    *[st.tuples(st.just("list"), st.lists(st.sampled_from(["get", "once"]), max_size=4))] * 2,
)
blocks = st.recursive(
    st.lists(leaves, min_size=1, max_size=3),
    lambda inner: st.lists(
        leaves | st.tuples(st.sampled_from(["if", "try", "undo"]), inner, inner) | st.tuples(st.just("loop"), inner),
        min_size=1,
        max_size=4,
    ),
    max_leaves=12,
)
raising = st.sampled_from([True, True, False])
errors = st.sampled_from([{"__error": "no"}, {"__error": ""}, {"__error": ["x"]}])
values = st.integers(0, 99) | st.sampled_from([None, "", [], {"__error": "no", "code": 1}]) | errors


class Trees(RuleBasedStateMachine):
    """After every answer, a tree that is fed the log from the beginning stands where the living one does."""

    def begin(self, program: Block, raises: bool) -> None:
        self.raises = raises
        self.seen = Seen(program)
        self.tree = self.fresh(self.seen)
        self.log = list[tuple[Any, ...]]()
        self.items = dict[int, Any]()
        """What the items of the list that is asked for have been answered with."""
        self.next = 1
        self.look()

    begin_one = initialize(program=blocks, raises=raising)(begin)

    def fresh(self, seen: Seen) -> Branches:
        tree = Branches("id:run", VERSION, self.raises)
        tree.begin(interpret, seen, 0.0)
        return tree

    def look(self) -> None:
        """See which items a list has that was just asked for."""
        self.items = {}
        if self.tree.calls and self.tree.asking(0) is None:
            assert list(self.tree.calls) == list(range(self.next, self.next + len(self.tree.calls)))
            self.next += len(self.tree.calls)
            self.items = dict.fromkeys(self.tree.calls)

    def came(self, before: list[Any], answer: Any) -> None:
        """Check what the workflow got after `before`, and look what it asks for now."""
        assert self.seen.answers[: len(before) + 1] == [*before, answer]
        self.look()

    @rule(data=st.data(), value=values)
    def something_happens(self, data: st.DataObject, value: Any) -> None:
        tree = self.tree
        if tree.ended:
            self.begin(data.draw(blocks), data.draw(raising))
            return
        may_be: list[int | str] = [*tree.calls, *tree.rests] * 3
        may_be += [END] * len(may_be) if tree.decided else []
        may_be += [CANCEL] if (CANCEL,) not in self.log else []
        who = data.draw(st.sampled_from(may_be))
        event(f"{who}" if isinstance(who, str) else "item" if who else "root")
        self.log.append((who, value) if isinstance(who, int) else (who,))
        if isinstance(who, int):
            self.answer(who, value)
        else:
            before, decided = list(self.seen.answers), told(tree.decided)
            tree.cancel(who, float(len(self.log)))
            self.came(before, decided if who == END else told(Cancelled()))

    def answer(self, number: int, value: Any) -> None:
        branch, before = self.tree.asking(number), list(self.seen.answers)
        assert branch is not None
        is_error = self.raises and isinstance(value, dict) and list(value) == ["__error"]
        error = ToolError(str(value["__error"]), branch.asked.label.removeprefix("tool ")) if is_error else None
        decided = told(self.tree.decided) or told(error)
        if self.tree.decided and error:
            decided[2].append(f"and then {error}")
        if number:
            self.items[number] = value
            value = list(self.items.values())
        is_last = not set(self.tree.calls) - {number}
        self.tree.answer(number, self.log[-1][1], float(len(self.log)))
        if is_last:
            self.came(before, decided or value)
        else:
            assert (self.seen.answers, told(self.tree.decided)) == (before, decided)

    @invariant()
    def a_fresh_tree_comes_to_the_same(self) -> None:
        seen = Seen(self.seen.program)
        tree = self.fresh(seen)
        for place, (who, *value) in enumerate(self.log, 1):
            about = f'{{"asked":"?","started":0.5,"ended":{place}.0}}'
            if value:
                tree.answer(who, value[0], about)
            else:
                tree.cancel(who, about)
        assert standing(tree, seen) == standing(self.tree, self.seen)
        root = tree.asking(0)
        assert root is None or (root.count, root.since) == (seen.asked - 1, len(self.log))
        assert not tree.ended or not (tree.calls or tree.rests or tree.decided)
        assert tree.close() is None


Trees.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestTrees = Trees.TestCase


def begun(workflow: Callable[..., Flow], raises: bool = False, version: int | None = VERSION) -> Branches:
    tree = Branches("id:run", version, raises)
    tree.begin(workflow, {}, 0.0)
    return tree


def asked(tree: Branches) -> list[tuple[str, str]]:
    return [(branch.mark, branch.asked.label) for branch in (*tree.calls.values(), *tree.rests.values())]


def error_of(tree: Branches) -> BaseException:
    assert isinstance(tree.ended, Raised)
    return tree.ended.error


def test_requests_are_numbered_within_their_branch_and_branches_in_the_order_they_come_into_being() -> None:
    def flow() -> Flow:
        yield tool("a", "x")
        yield [tool("b", "x"), tool("c.d", "x")]
        assert [(yield []), (yield version())] == [[], VERSION]
        yield (tool("e", "x"), {"__tool": ["f", "x", None]})
        yield wait("go")

    tree = begun(flow)
    turns = [asked(tree)]
    for number in (0, 2, 1, 3, 4):
        tree.answer(number, None, '{"asked":"x","started":1.0,"ended":5.0}')
        turns.append(asked(tree))
    assert turns == [
        [("0.0", "tool a.x")],
        [("1.0", "tool b.x"), ("2.0", "tool 'c.d'.x")],
        [("1.0", "tool b.x")],
        [("3.0", "tool e.x"), ("4.0", "tool f.x")],
        [("4.0", "tool f.x")],
        [("0.4", "wait go")],
    ]
    assert [branch.since for branch in tree.rests.values()] == [5.0]


def test_an_error_decides_a_list_and_later_ones_are_notes_on_it() -> None:
    def flow() -> Flow:
        try:
            yield [tool("a", "x"), tool("b", "x"), tool("c", "x"), tool("d", "x")]
        except ToolError as error:
            return str(error), error.tool, error.__notes__

    tree = begun(flow, raises=True)
    for number, value in ((2, {"__error": "one"}), (1, 5), (4, {"__error": "two"})):
        assert tree.ended is None
        tree.answer(number, value, 1.0)
    assert str(tree.decided) == "b.x failed: one"
    tree.cancel(END, 2.0)
    assert tree.decided is None
    assert isinstance(tree.ended, Returned)
    assert tree.ended.value == ("b.x failed: one", "b.x", ["and then d.x failed: two"])


def test_a_cancellation_is_thrown_at_the_yield_and_undoing_may_take_steps() -> None:
    def flow() -> Flow:
        try:
            yield [tool("a", "x"), tool("b", "x")]
        except Exception:  # a cancellation is none
            return "caught"
        except Cancelled:
            assert [(yield version()), (yield [])] == [VERSION, []]
            yield tool("undo", "x")
            raise

    tree = begun(flow, raises=True)
    tree.answer(1, {"__error": "one"}, 1.0)
    assert tree.decided is not None
    tree.cancel(CANCEL, 2.0)
    assert asked(tree) == [("0.2", "tool undo.x")]
    assert not tree.decided
    tree.answer(0, None, 3.0)
    assert isinstance(error_of(tree), Cancelled)


HERE = r"test_branches\.py:\d+\), which is not a request"


@pytest.mark.parametrize(
    ("yielded", "what"),
    [
        (5, "a int"),
        ({"secret": 1}, f"a dict .*{HERE}"),
        ({"__tool": ["a", "b", 1], "secret": 2}, f"a dict with __tool .*{HERE}: yield tool"),
        ({"__again": {}}, "return again"),
        ([tool("a", "x"), "secret"], f"a list with a str in it .*{HERE}"),
        ([tool("a", "x"), save()], "a list with"),
        ((each for each in "secret"), r"write \[...\]"),
    ],
)
def test_what_is_no_request_is_refused_where_it_was_yielded(yielded: Any, what: str) -> None:
    def inner() -> Flow:
        yield yielded

    def flow() -> Flow:
        yield from inner()

    error = error_of(begun(flow))
    assert isinstance(error, InvalidYield)
    with pytest.raises(InvalidYield, match=f"inner yielded .*{what}"):
        raise error
    line = inner.__code__.co_firstlineno + 1
    assert f"test_branches.py:{line})" in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("request_of", "what"),
    [
        (sleep(1), "sleep()"),
        (wait("go"), "wait()"),
        (version(), "version()"),
        (tool("a", "x", once=True), "tool(..., once=True)"),
        ([tool("a", "x"), tool("a", "x", once=True)], "tool(..., once=True)"),
        (None, "again()"),
    ],
)
def test_what_five_methods_cannot_promise_is_refused_by_name(request_of: Any, what: str) -> None:
    def flow() -> Flow:
        if request_of is not None:
            yield request_of
        return again({})

    tree = begun(flow, version=None)
    error = error_of(tree)
    assert isinstance(error, NotSupported)
    assert error.what == what
    assert asked(tree) == []


def test_a_request_that_is_returned_is_refused_and_so_is_what_is_asked_after_the_end() -> None:
    def flow() -> Flow:
        yield tool("a", "x")
        return tool("b", "x")

    tree = begun(flow)
    tree.answer(0, None, 1.0)
    assert "write `return (yield ...)`" in str(error_of(tree))
    with pytest.raises(KeyError):
        tree.answer(0, None, 2.0)


@pytest.mark.parametrize(
    ("does", "notes"), [(lambda: (yield from [tool("a", "x"), save()]), 1), (lambda: (yield save()).x, 0)]
)
def test_a_list_that_was_yielded_from_is_told_apart_from_a_mistake_of_the_workflow(
    does: Callable[[], Flow], notes: int
) -> None:
    def flow() -> Flow:
        yield from does()

    tree = begun(flow)
    tree.answer(0, 1, 1.0)
    assert isinstance(error_of(tree), AttributeError)
    assert ["yield [...]" in note for note in getattr(error_of(tree), "__notes__", [])] == [True] * notes


@pytest.mark.parametrize("does", ["yields", "fails"])
def test_what_a_finally_does_when_the_workflow_is_left_is_told_with_its_place(does: str) -> None:
    def flow() -> Flow:
        try:
            yield tool("a", "x")
        finally:
            if does == "yields":
                yield save()
            raise Broken

    tree = begun(flow)
    error = tree.close()
    assert isinstance(error, RuntimeError if does == "yields" else Broken)
    assert "left at a pause" in error.__notes__[0]
    assert tree.ended is None


def steps_of(work: Callable[[], None]) -> int:
    """Count the bytecodes that some work takes."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("raises", [False, True])
def test_a_long_list_takes_steps_in_proportion_to_its_length(raises: bool) -> None:
    def work(size: int) -> Callable[[], None]:
        def flow() -> Flow:
            return (yield [tool("a", "x", i) for i in range(size)])

        def do() -> None:
            tree = begun(flow, raises)
            for number in (*range(size, 0, -2), *range(size - 1, 0, -2)):
                tree.answer(number, number, 1.0)
            assert isinstance(tree.ended, Returned)
            assert tree.ended.value == list(range(1, size + 1))

        return do

    steps_of(work(10))
    assert steps_of(work(10_000)) < 11 * steps_of(work(1_000))


def test_many_lists_that_are_answered_at_once_do_not_exhaust_the_stack() -> None:
    def flow() -> Flow:
        for _ in range(100_000):
            yield []
        return (yield tool("a", "x"))

    tree = begun(flow)
    assert asked(tree) == [("0.100000", "tool a.x")]
