"""What is public, where it comes from, and what importing it costs."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import sequential
import sequential.http
import sequential.testing

PACKAGE = Path(sequential.__file__).parent
ORDER = [
    "errors", "checks", "owner", "blocking", "codec", "hooks", "context", "record", "observe", "journal", "five",
    "requests", "workflow", "branches", "lease", "setup", "calls", "upkeep", "invocation", "executor",
]  # fmt: skip
"""The core, each module importing from those before it alone."""

STORES = ("memory", "sqlite")
README = Path(__file__).parent.parent / "README.md"
HEAVY = {
    "asyncio", "concurrent", "dataclasses", "email", "http", "inspect", "logging", "multiprocessing", "nanoid", "pathlib", "random",
    "secrets", "socket", "sqlite3", "subprocess", "tempfile", "traceback", "urllib", "uuid",
}  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    """What a fresh interpreter has loaded after a statement, and had not before."""
    code = f"import sys; before = set(sys.modules); {statement}; import json; print(json.dumps(sorted(set(sys.modules) - before)))"
    bare = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=bare).stdout
    return set(json.loads(output))


def test_all_names_are_exported_and_no_other() -> None:
    public = {
        name for name, value in vars(sequential).items() if not name.startswith("_") and not hasattr(value, "__path__")
    }
    modules = {name for name in public if type(getattr(sequential, name)) is type(sequential)}
    assert public - modules == set(sequential.__all__)
    assert sequential.__all__ == sorted(sequential.__all__, key=lambda name: (not name[0].isupper(), name))
    for name in sequential.testing.__all__:
        assert hasattr(sequential.testing, name)


def test_every_error_is_in_the_drawn_tree() -> None:
    from sequential import errors

    own = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    assert errors.__doc__ is not None
    drawn = [line.split("- ")[1].split()[0] for line in errors.__doc__.splitlines() if "- " in line]
    assert drawn == [name for name, value in own.items() if issubclass(value, errors.SequentialError)][1:]
    assert set(own) - set(drawn) == {"SequentialError", "ToolError", "Cancelled"}
    assert set(own) <= set(sequential.__all__)
    assert not issubclass(errors.Cancelled, Exception)


@pytest.mark.parametrize(
    "error",
    [
        sequential.Damaged("id", 3),
        sequential.Damaged("id", None),
        sequential.Diverged("id", 3, "tool a.b", "save"),
        sequential.Fenced("id"),
        sequential.IdInUse("id", "input"),
        sequential.NotInstalled("redis", "redis"),
        sequential.ToolError("no seat left", "flight.book", (sequential.ToolError("no room"),)),
    ],
)
def test_errors_survive_pickling(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
    assert {name: str(value) for name, value in vars(again).items()} == {
        name: str(value) for name, value in vars(error).items()
    }


def test_importing_the_core_imports_nothing_heavy() -> None:
    loaded = loaded_by("import sequential")
    assert {name.split(".")[0] for name in loaded} & HEAVY == set()
    core = {f"sequential.{module}" for module in ORDER}
    assert {name for name in loaded if name.startswith("sequential.")} == core - {"sequential.upkeep"}


def test_running_a_workflow_in_memory_imports_nothing_heavy() -> None:
    statement = (
        "exec('''from sequential import *\\nfrom sequential.stores.memory import MemoryStorage\\n"
        "def w():\\n yield tool('a', 'b')\\nf = FlowExecutor(MemoryStorage(), call=lambda *_: 1)\\n"
        "f.execute_sync(w, 'x')\\nf.execute_sync(w, 'x')''')"
    )
    loaded = loaded_by(statement)
    assert {name.split(".")[0] for name in loaded} & HEAVY == set()


def test_a_store_imports_its_driver_and_no_other_store() -> None:
    assert {name for name in loaded_by("import sequential.stores.sqlite") if name.startswith("sequential.stores.")} == {
        "sequential.stores.sqlite",
        "sequential.stores.sqlite_file",
    }
    assert "sqlite3" in loaded_by("import sequential.stores.sqlite")


def test_importing_the_handler_imports_no_client_server_or_event_loop() -> None:
    loaded = loaded_by("import sequential.http")
    assert loaded & {"asyncio", "email", "http.client", "logging", "socket", "ssl"} == set()
    assert {name for name in loaded if name.startswith("sequential.stores")} == set()
    assert sequential.http.__all__ == sorted(sequential.http.__all__, key=lambda name: (not name[0].isupper(), name))
    for name in sequential.http.__all__:
        assert hasattr(sequential.http, name)


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_downwards_only(module: str) -> None:
    below = set(ORDER[: ORDER.index(module)])
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    relative = {
        node.module or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for name in node.names
    }
    assert relative <= below


def test_every_public_thing_has_a_docstring() -> None:
    for info in pkgutil.walk_packages(sequential.__path__, "sequential."):
        module = importlib.import_module(info.name)
        assert module.__doc__, info.name
    for name in sequential.__all__:
        assert getattr(sequential, name).__doc__, name


def test_a_tools_error_loads_no_log_that_nobody_has_asked_for() -> None:
    loaded = loaded_by(
        "from sequential import *; from sequential.stores.memory import MemoryStorage\n"
        "def workflow(): return (yield tool('a', 'b'))\n"
        "def call(*_): raise KeyError('id')\n"
        "FlowExecutor(MemoryStorage(), call=call).execute_sync(workflow)"
    )
    assert "logging" not in loaded


def test_the_test_kit_needs_no_pytest() -> None:
    code = "import sys, sequential.testing; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


def code_lines(path: Path) -> int:
    """Count a file's lines of code: neither empty ones, nor comments and docstrings."""
    text = path.read_text()
    docstrings = sum(
        (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    return sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith("#")) - docstrings


def test_the_readme_says_how_much_code_there_is_to_trust() -> None:
    def lines_with(store: str) -> int:
        loaded = (name.split(".") for name in loaded_by(f"import sequential.stores.{store}"))
        return sum(code_lines(PACKAGE / "stores" / f"{last}.py") for *packages, last in loaded if "stores" in packages)

    stores = [lines_with(store) for store in STORES]
    core, http = (sum(map(code_lines, folder.glob("*.py"))) for folder in (PACKAGE, PACKAGE / "http"))
    core, least, most, http = (round(lines, -2) for lines in (core, min(stores), max(stores), http))
    told = f"{core:,} lines, comments apart, your store's {least} to {most}, and {http} for HTTP"
    assert told in README.read_text()
