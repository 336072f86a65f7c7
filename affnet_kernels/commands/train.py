"""`train`: a network trained for classification, detection or segmentation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from affnet_kernels.models import MODELS
from affnet_kernels.models.token_mixers import MIXERS
from affnet_kernels.training.engine import RECIPE, train
from affnet_kernels.training.launch import joined
from affnet_kernels.training.recipe import Recipe
from affnet_kernels.training.settings import Settings, Summary
from affnet_kernels.training.tasks import TASKS

# The recipe where none is named: of a task and its embedded data, and of a task and a folder (None: the model's own).
RECIPES: dict[tuple[str, str], str | None] = {
    ("classification", "digits"): "digits",
    ("classification", "photos"): "photos",
    ("detection", "scenes"): "ssdlite_scenes",
    ("segmentation", "scenes"): "deeplabv3_scenes",
    ("classification", "DIR"): None,
    ("detection", "DIR"): "ssdlite_coco",
    ("segmentation", "DIR"): "deeplabv3_voc",
}
# Options that stand for a field of the recipe.
FIELDS = ("task", "data", "model", "mixer", "size", "epochs", "batch", "seed", "amp", "weights")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to train, where to write it, and with what means."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoints, logs and curves")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out; without one there, start it")
    parser.add_argument("--task", choices=TASKS, help="classification unless the recipe says otherwise")
    parser.add_argument("--data", metavar="NAME|DIR", help="digits, photos, scenes, or a folder")
    parser.add_argument("--recipe", metavar="NAME|FILE", help="a recipe of the package, or a TOML file")
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--mixer", choices=MIXERS)
    for name in ("size", "epochs", "batch", "seed"):
        parser.add_argument(f"--{name}", type=int, metavar="N")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"))
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint to start from")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="any field of the recipe")
    parser.add_argument("--device", default=None, help="cpu or cuda; cuda where there is one")
    parser.add_argument("--fsdp", action="store_true", help="under torchrun: divide the parameters among the processes")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that load data")
    parser.add_argument("--save-every", type=int, default=0, metavar="STEPS", help="checkpoints within an epoch too")
    parser.add_argument("--log-every", type=int, default=10, metavar="STEPS", help="rows of steps.csv")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Train a network, and write its weights, logs and curves."""
    settings = Settings(
        out=options.out,
        resume=options.resume,
        save_every=options.save_every,
        log_every=options.log_every,
        workers=options.workers,
        progress=not options.quiet,
    )
    with joined(options.device, fsdp=options.fsdp) as processes:
        try:
            summary = train(chosen_recipe(options), settings, processes)
        except KeyboardInterrupt:
            if processes.rank == 0:
                print(
                    f"train: interrupted; --resume continues after the last checkpoint in {settings.out}",
                    file=sys.stderr,
                )
            return 130
        if processes.rank == 0:
            print(table(summary, options.out))
    return 0


def chosen_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe of the run to resume, of --recipe, or the one for task and data; changed by the other options."""
    saved = options.out / RECIPE
    if options.resume and saved.is_file() and options.recipe is None:
        recipe = Recipe.load(saved)
    else:
        recipe = Recipe.load(options.recipe or default_recipe(options.task, options.data, options.model))
    values: dict[str, Any] = {name: getattr(options, name) for name in FIELDS if getattr(options, name) is not None}
    return recipe.replace(**values, **assignments(options.set))


def default_recipe(task: str | None, data: str | None, model: str | None) -> str:
    """The name of the package's recipe for a task, data and model."""
    task = task or "classification"
    data = data or ("digits" if task == "classification" else "scenes")
    name = RECIPES.get((task, data if (task, data) in RECIPES else "DIR"))
    return name or model or "affnet_et"


def assignments(texts: list[str]) -> dict[str, Any]:
    """FIELD=VALUE, where VALUE is written as in TOML, or as a text without its quotes; options.NAME=VALUE, too."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"train: expected --set FIELD=VALUE, got {text!r}")
        parsed = Recipe.value(value)
        if name.startswith("options."):
            values.setdefault("options", {})[name.removeprefix("options.")] = parsed
        else:
            values[name] = parsed
    return values


def table(summary: Summary, out: Path) -> str:
    """The end of a run in words and figures."""
    seconds = max(summary.seconds, 1e-9)
    rest = seconds - summary.loading - summary.computing
    rows = [
        (f"best {summary.metric}", f"{summary.best:.2f} in epoch {summary.best_epoch} of {summary.epochs}"),
        ("time", f"{seconds:.1f} s"),
        ("images", f"{summary.images}, {summary.images / seconds:.1f} per second"),
        ("waiting for data", f"{100 * summary.loading / seconds:.1f} %"),
        ("model", f"{100 * summary.computing / seconds:.1f} %"),
        ("evaluation, checkpoints, logs", f"{100 * rest / seconds:.1f} %"),
        ("skipped samples", str(len(summary.skipped))),
        ("written to", str(out)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
