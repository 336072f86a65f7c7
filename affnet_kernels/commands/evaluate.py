"""`evaluate`: a trained network's metrics on held-out data."""

from __future__ import annotations

import argparse
import sys

from affnet_kernels.commands.train import assignments
from affnet_kernels.models.checkpoint import load_checkpoint, read_checkpoint
from affnet_kernels.models.dense_checkpoints import training_facts
from affnet_kernels.training.evaluation import evaluate
from affnet_kernels.training.launch import joined
from affnet_kernels.training.recipe import Recipe
from affnet_kernels.training.tasks import task_of

SHOWN = 5  # skipped samples that are named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The weights, the data, and with what means."""
    parser.add_argument("checkpoint", metavar="FILE", help="best.pt of a run, or any checkpoint with --recipe")
    parser.add_argument("--recipe", metavar="NAME|FILE", help="what it was trained by; best.pt tells it")
    parser.add_argument("--data", metavar="NAME|DIR", help="other data than the recipe's, of the same classes")
    parser.add_argument("--size", type=int, metavar="N", help="height and width of the images")
    parser.add_argument("--batch", type=int, metavar="N", help="images at a time")
    parser.add_argument("--ema", action="store_true", help="the averaged weights of a checkpoint that has both")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="any field of the recipe")
    parser.add_argument("--device", default=None, help="cpu or cuda; cuda where there is one")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that load data")


def run(options: argparse.Namespace) -> int:
    """Print a network's metrics on the test data of its recipe, or on others."""
    read_checkpoint(options.checkpoint)  # which says what is wrong with a file
    facts = training_facts(options.checkpoint)
    if options.recipe is None and not facts.recipe:
        raise ValueError(
            f"evaluate: expected --recipe for a checkpoint that does not tell it, got {options.checkpoint} without one"
        )
    recipe = Recipe.load(options.recipe) if options.recipe else Recipe.from_dict(facts.recipe)
    values = {name: getattr(options, name) for name in ("data", "size", "batch") if getattr(options, name) is not None}
    recipe = recipe.replace(**values, **assignments(options.set))
    task = task_of(recipe)
    if facts.classes is not None and facts.classes != task.classes:
        raise ValueError(
            f"evaluate: expected data of the checkpoint's classes, {shortened(facts.classes)}, "
            f"got {shortened(task.classes)} in {recipe.data}"
        )
    network = task.model()
    load_checkpoint(network, options.checkpoint, ema=options.ema)
    with joined(options.device) as processes:
        metrics, skipped = evaluate(task, recipe, network.to(processes.device), processes, workers=options.workers)
        if processes.rank == 0:
            for name, value in metrics.items():
                print(f"{name:<10}  {value:.2f}")
            for sentence in skipped[:SHOWN]:
                print(f"skipped: {sentence}", file=sys.stderr)
            if skipped:
                print(f"skipped samples: {len(skipped)}", file=sys.stderr)
    return 0


def shortened(names: list[str]) -> str:
    """How many there are, and the first ones."""
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
