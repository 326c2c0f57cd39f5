"""The pages tell the truth: generated parts are fresh, links lead somewhere, snippets are valid, recipes parse."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from understudy import recipe as recipes
from understudy import sections
from understudy.signals import Batch

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
COMPLETE = {"teacher": {"source": "x.skops"}, "data": {"train": "x.csv"}, "out": "runs/x"}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("script", ["loss_docs", "recipe_docs", "readme_tree"])
def test_generated_parts_are_fresh(script: str) -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_toml_snippets_are_recipes(page: Path) -> None:
    for snippet in blocks(page, "toml"):
        said = tomllib.loads(snippet)
        for section, needed in COMPLETE.items():
            if section == "teacher" and said.keys() & {"cohort", "generations"}:
                continue
            if isinstance(needed, dict):
                given = said.setdefault(section, {})
                if section != "teacher" or not given.keys() & {"source", "train", "members"}:
                    said[section] = needed | given
            else:
                said.setdefault(section, needed)
        assert recipes.parse(said).out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_snippets_compile(page: Path) -> None:
    for snippet in blocks(page, "python"):
        assert compile(snippet, page.name, "exec")


def test_snippets_on_extending_run() -> None:
    own_loss, own_term = blocks(ROOT / "docs" / "extending.md", "python")
    names: dict[str, Any] = {}
    exec(own_loss, names)
    exec(own_term, names)
    student = torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    assert names["confident_target"](student, teacher).shape == (2,)
    total, terms = names["objective"]({"logits": student}, Batch(student, torch.tensor([0, 0]), None, {"logits": teacher}))
    total.backward()
    assert terms["mistakes"] > 0
    assert student.grad is not None and student.grad.abs().sum() > 0


def test_every_option_is_named_in_the_tables() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert {f"`{name}`" for name in sections.OptimizerSection.model_fields} <= set(re.findall(r"`\w+`", text))


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_parse_and_begin_with_their_command(path: Path) -> None:
    assert recipes.load(path).out.startswith("runs/")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"understudy distill recipes/{path.name}" in text


@pytest.mark.slow
def test_the_readme_runs(tmp_path: Path) -> None:
    readme = ROOT / "README.md"
    (program,) = blocks(readme, "python")
    assert len([line for line in program.splitlines() if line.strip()]) <= 10
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    (commands,) = blocks(readme, "bash")
    for command in commands.splitlines():
        words = command.replace("understudy", f"{sys.executable} -m understudy", 1).split()
        done = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8").count("\n") == 172
