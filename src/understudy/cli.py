"""The command line: verbs, each one public function of the same name. Imported by nothing; imports inside the verbs.

Exit status: 0 done, 1 a gate was not met or the run cannot mean anything, 2 something given is wrong (no traceback).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="understudy",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A teacher and data in, a small model out, in a file that runs anywhere, with proof.",
    epilog="Start: understudy distill recipes/digits.toml. Your own: understudy distill --teacher forest.joblib --trust "
    "--data adult.csv --label income --student tree --out runs/adult",
)

RecipeFile = Annotated[Path | None, typer.Argument(help="a recipe (TOML); or say everything with options", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", help="change one option: --set train.epochs=3", show_default=False)]
Teacher = Annotated[
    str | None, typer.Option(help="file, package.module:factory or timm:NAME; `train:mlp` trains one here", show_default=False)
]
Weights = Annotated[str | None, typer.Option(help="state dict of a torch teacher (.safetensors)", show_default=False)]
Trust = Annotated[bool, typer.Option("--trust", help="load files that can execute code (.joblib, .pkl)")]
Data = Annotated[str | None, typer.Option(help="CSV, Parquet, .npz, folder or zip of images, package.module:function", show_default=False)]
Validation = Annotated[str | None, typer.Option(help="given validation rows; otherwise split off", show_default=False)]
Test = Annotated[str | None, typer.Option(help="given test rows; otherwise split off", show_default=False)]
Label = Annotated[str | None, typer.Option(help="label column", show_default=False)]
Task = Annotated[str | None, typer.Option(help="multiclass, binary, multilabel or regression; found from the labels", show_default=False)]
StudentModel = Annotated[str | None, typer.Option("--student", help="tree, boosted, mlp, convnet, timm:NAME, ...", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="the run's folder", show_default=False)]
Seeds = Annotated[int | None, typer.Option(help="how many seeds: 3 means 0, 1, 2", min=1, show_default=False)]
Require = Annotated[
    list[str] | None, typer.Option(help='gate for CI: --require "agreement>=0.95"; exit status 1 if not met', show_default=False)
]
Fresh = Annotated[bool, typer.Option("--fresh", help="start the students over; the transfer set is kept")]

Workers = Annotated[
    int | None,
    typer.Option(help="processes that hold the teacher once each; on a cluster also ranks that train", min=1, show_default=False),
]
On = Annotated[str | None, typer.Option(help="a Ray cluster: ray (this machine's) or ray://host:10001", show_default=False)]


def _recipe(given: dict[str, Any]) -> Any:
    """The recipe of a file and options together."""
    import tomllib

    from understudy import recipe as recipes
    from understudy.errors import RecipeError

    path, overrides = given["recipe"], list(given["set_"] or [])
    said: dict[str, Any] = {}
    if path is not None:
        recipes.load(path, overrides)
        said = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    for override in overrides:
        recipes.apply_override(said, override)
    places = {
        "validation": "data.validation", "test": "data.test", "data": "data.train", "label": "data.label", "task": "task",
        "student": "student.model", "out": "out", "weights": "teacher.weights",
    }  # fmt: skip
    for option, place in places.items():
        if given.get(option) is not None:
            _put(said, place, str(given[option]))
    teacher = given.get("teacher")
    if teacher is not None:
        said["teacher"] = {k: v for k, v in said.get("teacher", {}).items() if k not in ("source", "train", "members")}
        said["teacher"] |= {"train": {"model": teacher.removeprefix("train:")}} if teacher.startswith("train:") else {"source": teacher}
    if given.get("trust"):
        _put(said, "teacher.trust", True)
    if given.get("seeds"):
        said["seeds"] = list(range(given["seeds"]))
    if given.get("require"):
        _put(said, "measure.require", list(given["require"]))
    if path is None:
        lacking = [
            f"--{name}" for name, there in (("teacher", "teacher" in said), ("data", "data" in said), ("out", "out" in said)) if not there
        ]
        if lacking:
            raise RecipeError(
                f"without a recipe these are needed: {', '.join(lacking)} (or give a recipe: understudy distill recipe.toml)", code="U002"
            )
    return recipes.parse(said)


def _put(said: dict[str, Any], place: str, value: Any) -> None:
    *sections, option = place.split(".")
    for section in sections:
        said = said.setdefault(section, {})
    said[option] = value


def _run(given: dict[str, Any], until: str) -> None:
    from understudy import pipeline

    options = {name: given[name] for name in ("fresh", "workers", "on") if name in given}
    pipeline.distill(_recipe(given), until=until, **options)  # type: ignore[arg-type]


@app.command(epilog="understudy distill recipes/adult.toml --set train.epochs=3 --require 'agreement>=0.9'")
def distill(
    recipe: RecipeFile = None, set_: Set = None, teacher: Teacher = None, weights: Weights = None, trust: Trust = False, data: Data = None,
    validation: Validation = None, test: Test = None, label: Label = None, task: Task = None, student: StudentModel = None, out: Out = None,
    seeds: Seeds = None, require: Require = None, fresh: Fresh = False,
) -> None:  # fmt: skip
    """Everything: check, teach, train student and control, export, measure; the same command again continues."""
    _run(locals(), "measure")


@app.command(epilog="understudy check recipes/adult.toml")
def check(
    recipe: RecipeFile = None, set_: Set = None, teacher: Teacher = None, weights: Weights = None, trust: Trust = False, data: Data = None,
    validation: Validation = None, test: Test = None, label: Label = None, task: Task = None, student: StudentModel = None, out: Out = None,
) -> None:  # fmt: skip
    """The preflight only: read the rows, load and score the teacher, list every problem, train nothing."""
    from understudy import pipeline

    pipeline.check(_recipe(locals()))


@app.command(epilog="understudy plan recipes/adult.toml")
def plan(
    recipe: RecipeFile = None, set_: Set = None, teacher: Teacher = None, weights: Weights = None, trust: Trust = False, data: Data = None,
    validation: Validation = None, test: Test = None, label: Label = None, task: Task = None, student: StudentModel = None, out: Out = None,
    seeds: Seeds = None, seconds: Annotated[float, typer.Option(help="the probe's budget", min=1)] = 30.0,
) -> None:  # fmt: skip
    """What a run will take, from a short probe: rows, views, bytes, memory, time; too little disk or memory is refused."""
    from understudy import pipeline

    pipeline.plan(_recipe(locals()), seconds=seconds)


@app.command(epilog="understudy explain recipes/adult.toml")
def explain(recipe: RecipeFile = None, set_: Set = None) -> None:
    """The objective as formulas with this recipe's numbers, what each term reads, and the control's; no data is read."""
    from understudy import pipeline

    print(pipeline.explain(_recipe(locals())))


@app.command(epilog="understudy teach recipes/adult.toml --workers 4")
def teach(
    recipe: RecipeFile = None, set_: Set = None, out: Out = None, workers: Workers = None, on: On = None,
) -> None:  # fmt: skip
    """Ask the teacher once about every row and keep its answers as the transfer set; the files are the same whoever asks."""
    _run(locals(), "teach")


@app.command(epilog="understudy train recipes/adult.toml")
def train(
    recipe: RecipeFile = None, set_: Set = None, out: Out = None, seeds: Seeds = None, fresh: Fresh = False, workers: Workers = None,
    on: On = None,
) -> None:  # fmt: skip
    """Train the student and its control on the transfer set (taught first if it is not there)."""
    _run(locals(), "train")


@app.command(epilog="understudy export recipes/adult.toml")
def export(recipe: RecipeFile = None, set_: Set = None, out: Out = None) -> None:
    """Write the artifact and score it in a fresh process that has not this package."""
    _run(locals(), "export")


@app.command(epilog='understudy measure recipes/adult.toml --require "agreement>=0.95"')
def measure(recipe: RecipeFile = None, set_: Set = None, out: Out = None, require: Require = None) -> None:
    """Score teacher, control, student and exported file on the test rows; print the scorecard and the verdict."""
    _run(locals(), "measure")


@app.command(epilog="understudy predict runs/adult/artifact rows.csv --out predictions.csv")
def predict(
    artifact: Annotated[Path, typer.Argument(help="the artifact's folder")],
    rows: Annotated[Path, typer.Argument(help="CSV, .npz or a folder of images")],
    out: Annotated[Path, typer.Option(help="where to write the predictions")] = Path("predictions.csv"),
    batch: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Answer rows with an artifact; writes class and probabilities (or the value) per row."""
    from understudy.errors import InputError
    from understudy.exporting import predict_template

    try:
        answered = predict_template.write_predictions(artifact, rows, out, batch)
    except (predict_template.PredictError, OSError) as error:
        raise InputError(str(error), code="U047") from None
    print(f"{answered:,} rows answered in {out}")


Store = Annotated[str, typer.Argument(help="a transfer set's folder, such as runs/adult/transfer/training, or its address (s3://...)")]


@app.command(epilog="understudy verify runs/adult/transfer/training --teacher forest.joblib --trust")
def verify(
    store: Store, recipe: Annotated[Path | None, typer.Option(help="a recipe; found beside the store in a run", show_default=False)] = None,
    set_: Set = None, teacher: Teacher = None, weights: Weights = None, trust: Trust = False, data: Data = None, label: Label = None,
    task: Task = None, rows: Annotated[int, typer.Option(help="how many rows are asked again", min=1)] = 64,
) -> None:  # fmt: skip
    """Ask the teacher again about rows of a transfer set and report the worst difference; exit status 2 when it is another one."""
    from understudy import pipeline

    pipeline.verify(store, _recipe_of(store, locals()), rows=rows)


@app.command(epilog="understudy inspect runs/adult/transfer/training --rows 20")
def inspect(
    store: Store, recipe: Annotated[Path | None, typer.Option(help="a recipe; found beside the store in a run", show_default=False)] = None,
    data: Data = None, label: Label = None, rows: Annotated[int, typer.Option(help="how many rows are shown", min=1)] = 10,
) -> None:  # fmt: skip
    """Show a transfer set: rows with their soft labels, entropy, the most confused classes."""
    from understudy import pipeline

    known = recipe is not None or data is not None or _beside(store) is not None
    given = {"teacher": None, "set_": None, **locals()}
    pipeline.inspect(store, _recipe_of(store, given) if known else None, rows=rows)


def _beside(store: str) -> Path | None:
    """The recipe of the run that a store is in."""
    if "://" in store:
        return None
    there = [folder / "recipe.toml" for folder in Path(store).resolve().parents[:2]]
    return next((path for path in there if path.exists()), None)


def _recipe_of(store: str, given: dict[str, Any]) -> Any:
    """The recipe behind a store: the one given, or that of its run, with what the options change."""
    given = given | {"recipe": given["recipe"] or _beside(store)}
    if given["recipe"] is None:
        given |= {"out": "." if "://" in store else store, "teacher": given["teacher"] or "unknown"}
    return _recipe(given)


@app.callback(invoke_without_command=True)
def _about(version: Annotated[bool, typer.Option("--version", help="print the version", is_eager=True)] = False) -> None:
    if version:
        from understudy import __version__

        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; deliberate errors are printed without a traceback and give their own exit status."""
    try:
        app()
    except Exception as error:
        from understudy.errors import UnderstudyError

        if not isinstance(error, UnderstudyError):
            raise
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True, soft_wrap=True).print(Text.assemble(("error  ", "bold red"), str(error)))
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        sys.exit(130)
