"""Imports go one way through the rooms, and the public names are the ones written down."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sslprune

PACKAGE = Path(sslprune.__file__).parent
# fmt: off
ROOMS = [  # from low to high: a file imports from its own room or a lower one
    "errors", "files", "values", "recipe", "capture", "analysis", "kinds", "cost", "choose", "removal", "calibration",
    "models", "zoo",
    "data", "export", "bench", "report", "train", "show", "run", "callbacks", "cli",
]
# fmt: on
RANK = {name: rank for rank, name in enumerate(ROOMS)}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports(path: str) -> set[str]:
    """The dotted names of everything that the module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


@pytest.mark.parametrize("path", [path for path in MODULES if path not in ("__init__.py", "__main__.py")])
def test_imports_go_one_way(path: str) -> None:
    name = path.split("/")[0].removesuffix(".py")
    assert name in RANK, f"{path}: which room is it? add it to ROOMS"
    for imported in imports(path):
        top, _, rest = imported.partition(".")
        if top == "sslprune":
            other = rest.split(".")[0]
            assert other in RANK, f"{path} imports {imported}: import from the module that defines it"
            lower = RANK[other] <= RANK[name]
            assert lower, f"{path} imports {imported}, which stands above it"


def test_rules_import_the_interpreter_and_nobody_but_the_analysis_their_table() -> None:
    table = "sslprune.analysis.rules"
    users = {path for path in MODULES if f"{table}.RULES" in imports(path)}
    assert users == {"analysis/analysis.py"}
    assert not [name for name in imports("analysis/inference.py") if name.startswith(table)]


def test_no_import_inside_a_function_dodges_a_circle() -> None:
    late: list[str] = []
    waiting = ("cli/", "data/", "bench/footprint.py")  # what they import late takes seconds or memory, or is an extra
    for path in (path for path in MODULES if not path.startswith(waiting)):
        for function in ast.walk(ast.parse((PACKAGE / path).read_text())):
            if isinstance(function, ast.FunctionDef):
                found = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
                late += [path for node in found if str(getattr(node, "module", "")).startswith("sslprune")]
    assert not late


@pytest.mark.parametrize(
    ("library", "room"),
    [("typer", "cli"), ("rich", "show")],
)
def test_terminal_libraries_stay_in_their_room(library: str, room: str) -> None:
    users = {path for path in MODULES if any(name.split(".")[0] == library for name in imports(path))}
    assert {path.split("/")[0] for path in users} == {room}


def test_public_names() -> None:
    contract = {"trace", "find_axes", "zero_groups", "repack", "GroupLasso", "export_onnx", "load"}
    contract |= {"apply_plan", "make_plan"}
    assert contract <= set(sslprune.__all__)
    assert len(set(sslprune.__all__)) == len(sslprune.__all__)
    for name in sslprune.__all__:
        assert getattr(sslprune, name, None) is not None, f"{name} is in __all__ and is not there"


def test_no_vague_names() -> None:
    vague = {"utils", "helpers", "manager", "common"}
    assert not [path for path in MODULES if vague & set(path.removesuffix(".py").split("/"))]


def test_a_place_is_where_an_operator_stands_in_a_persons_code() -> None:
    """`sslprune.capture.refusals.place` alone is called so, with what it gives."""
    others: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
            names = [getattr(node, of, None) for of in ("id", "arg", "attr", "name", "asname")]
            found = [
                name for name in names if isinstance(name, str) and {"place", "places"} & set(name.lower().split("_"))
            ]
            if found and "sslprune.capture.refusals.place" not in imports(path) and path != "capture/refusals.py":
                others.setdefault(path, []).extend(found)
    assert not others


def test_files_stay_readable() -> None:
    lines = {path: len((PACKAGE / path).read_text().splitlines()) for path in MODULES}
    assert not {path: count for path, count in lines.items() if count > 350}, "split it by idea"
