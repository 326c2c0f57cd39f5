"""The structure that the source keeps to: rows of modules, siblings, leaves, names, and what an import costs.

Every import counts, late ones too; imports for type checkers only count as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "understudy"

ROW = {
    "errors": 0,
    "losses": 1,
    "pools": 1,
    "ranks": 1,
    "signals": 1,
    "tasks": 1,
    "schedules": 1,
    "sections": 1,
    "taps": 2,
    "contrasts": 2,
    "terms": 2,
    "data": 2,
    "catalogue": 3,
    "features": 3,
    "objectives": 4,
    "store": 2,
    "recipe": 2,
    "answers": 2,
    "teachers": 3,
    "students": 3,
    "adapters": 4,
    "asking": 4,
    "ensembles": 4,
    "checks": 5,
    "teaching": 5,
    "training": 5,
    "measuring": 5,
    "exporting": 5,
    "wiring": 5,
    "pairing": 5,
    "make": 6,
    "stages": 7,
    "planning": 8,
    "pipeline": 9,
    "cli": 10,
}
"""A module imports only from a smaller row."""

DOORS = {"__init__", "__main__"}
"""The public names and `python -m understudy`: they may import anything; the command line alone asks for the version."""

SHAPES = {"data.rows", "make.rows", "store.encodings", "store.mirror", "students.student", "students.preprocessing", "training.gradient"}
"""Modules that the siblings of a family may share although their names have no underscore."""

CORE = {
    "PIL",
    "accelerate",
    "jaxtyping",
    "joblib",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "psutil",
    "pyarrow",
    "pydantic",
    "rich",
    "safetensors",
    "scipy",
    "skl2onnx",
    "sklearn",
    "threadpoolctl",
    "torch",
    "typer",
}
"""The dependencies of every installation; whatever else is imported is foreign and belongs into adapters/."""

FOREIGN_OUTSIDE_ADAPTERS = {
    ("data.audio", "soundfile"),
    ("data.tokenizing", "tokenizers"),
    ("exporting.predict_template", "tokenizers"),
    ("store.mirror", "fsspec"),
    ("students.student", "skops"),
    ("students.trees", "lightgbm"),
    ("training._journal", "torch.utils.tensorboard"),
}
"""(module, package): the exceptions, each because rows, answers, the student or its log, not a teacher, are made with that package."""

HEAVY = {"accelerate", "lightgbm", "onnx", "onnxruntime", "pandas", "pyarrow", "scipy", "sklearn", "timm", "torch", "xgboost"}


@cache
def modules() -> dict[str, Path]:
    """Dotted name below `understudy` -> file."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Full dotted names a file imports; `from a import b` gives `a.b` where that is a module of ours, else `a`."""
    found: list[str] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append(inner if inner.removeprefix("understudy.") in modules() else node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            found += [str(given.value) for given in node.args[:1] if isinstance(given, ast.Constant)]
    return tuple(found)


def edges() -> Iterator[tuple[str, str]]:
    """(module, module of ours that it imports), the doors left out."""
    for name, path in modules().items():
        if name in DOORS:
            continue
        for target in imported(path):
            if (name, target) == ("cli", "understudy"):
                continue
            if target == "understudy" or target.startswith("understudy."):
                yield name, target.removeprefix("understudy").removeprefix(".") or "__init__"


def foreign() -> Iterator[tuple[str, str]]:
    """(module, package that is neither ours, the standard library's nor a core dependency)."""
    for name, path in modules().items():
        for target in imported(path):
            top = target.partition(".")[0]
            if target.startswith("torch.utils.tensorboard"):
                yield name, "torch.utils.tensorboard"
            elif top not in CORE | {"understudy", "__future__"} and top not in sys.stdlib_module_names:
                yield name, top


def test_every_module_has_a_row() -> None:
    unknown = sorted({name.partition(".")[0] for name in modules()} - set(ROW) - DOORS)
    assert not unknown, f"give these a row in this file and in the README's tree: {unknown}"


def test_imports_point_to_smaller_rows() -> None:
    wrong = []
    for name, target in edges():
        here, there = name.partition(".")[0], target.partition(".")[0]
        if here == there and "." in target:
            continue  # a sibling; see below
        if there in DOORS or ROW[there] >= ROW[here]:
            wrong.append(f"{name} (row {ROW[here]}) imports {target} (row {ROW.get(there, 'door')})")
    assert not wrong, "\n".join(wrong)


def test_siblings_share_only_private_or_shape_modules() -> None:
    wrong = []
    for name, target in edges():
        if name.partition(".")[0] != target.partition(".")[0] or name == target:
            continue
        if not target.rpartition(".")[2].startswith("_") and target not in SHAPES:
            wrong.append(f"{name} imports its sibling {target}")
    assert not wrong, "\n".join(wrong)


def test_family_packages_are_only_a_docstring() -> None:
    for path in SOURCE.glob("*/__init__.py"):
        body = tree(path).body
        assert len(body) == 1, f"{path.parent.name}/__init__.py holds more than a docstring"
        assert isinstance(body[0], ast.Expr), f"{path.parent.name}/__init__.py holds no docstring"


def test_families_are_one_level_deep() -> None:
    assert not [name for name in modules() if name.count(".") > 1]


def test_adapters_are_leaves_that_only_make_imports() -> None:
    assert {name for name, target in edges() if target.startswith("adapters.") and not name.startswith(("adapters.", "make."))} == set()


def test_the_command_line_is_imported_by_nobody() -> None:
    assert not [name for name, target in edges() if target == "cli"]


def test_foreign_frameworks_stay_in_adapters() -> None:
    stray = {(name, package) for name, package in foreign() if not name.startswith("adapters.")}
    assert stray <= FOREIGN_OUTSIDE_ADAPTERS, f"import these in adapters/: {sorted(stray - FOREIGN_OUTSIDE_ADAPTERS)}"


def test_foreign_frameworks_are_imported_only_when_used() -> None:
    early = []
    packages = {package for _, package in foreign()}
    for name, path in modules().items():
        for node in tree(path).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                early += [f"{name}: {each}" for each in names if any(each == p or each.startswith(f"{p}.") for p in packages)]
    assert not early, f"move these into the function that needs them: {early}"


@pytest.mark.parametrize("word", ["utils", "util", "common", "helpers", "helper", "base", "misc"])
def test_no_module_has_a_name_that_says_nothing(word: str) -> None:
    assert not [name for name in modules() if word in name.replace("_", ".").split(".")]


def loaded_by(code: str) -> set[str]:
    """The packages that a fresh Python has loaded after this code."""
    code += "\nprint('\\n' + ' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SOURCE.parent, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


HELP = """
import sys
sys.argv = ["understudy", *{arguments!r}]
from understudy.cli import main
try:
    main()
except SystemExit as stopped:
    assert not stopped.code, stopped.code
"""


@pytest.mark.parametrize("arguments", [["--help"], ["distill", "--help"], ["predict", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert not loaded_by(HELP.format(arguments=arguments)) & HEAVY


@pytest.mark.parametrize("module", ["understudy", "understudy.errors", "understudy.recipe", "understudy.cli"])
def test_import_loads_nothing_heavy(module: str) -> None:
    assert not loaded_by(f"import sys\nimport {module}") & HEAVY
