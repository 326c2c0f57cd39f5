"""The names that `import understudy` offers are there, and no others."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

import understudy

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", understudy.__all__)
def test_every_public_name_resolves_and_is_described(name: str) -> None:
    value = getattr(understudy, name)
    assert name == "__version__" or value.__doc__, f"understudy.{name} has no docstring"


def test_all_is_sorted_and_listed() -> None:
    assert understudy.__all__ == sorted(understudy.__all__)
    assert dir(understudy) == understudy.__all__


def test_type_checkers_see_the_same_names_from_the_same_places() -> None:
    tree = ast.parse(Path(understudy.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {name: f"understudy.{home}" for name, home in understudy._HOME.items()}
    assert {*seen, "__version__"} == set(understudy.__all__)


def test_the_verbs_of_the_command_line_are_public_functions() -> None:
    assert {"distill", "check", "teach", "train", "measure", "export", "predict", "verify", "inspect"} <= set(understudy.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'understudy' has no attribute 'distil'"):
        _ = understudy.distil


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert understudy.__version__ == project["version"]
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_all_extra_holds_every_adapter_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras["all"] == [f"understudy[{','.join(sorted(set(extras) - {'all', 'dev'}))}]"]
