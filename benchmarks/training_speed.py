"""What the training loop costs beside a plain one: `python -m benchmarks.training_speed`, some minutes.

A plain loop is forward, backward and AdamW on batches that are in memory already. The loop of `affnet_kernels.training`
makes its batches of digits, clips, averages the weights, follows the schedule, and logs; its own figures of a run are
taken, evaluation and checkpoints left out. Rounds of both alternate, and their ratios are taken pair by pair: on a busy
machine the ratio is worth more than the rates.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from affnet_kernels.training import Recipe, Settings, train
from affnet_kernels.training.sampling import Plan
from affnet_kernels.training.tasks import task_of


class Round(NamedTuple):
    """Images per second of both loops, and the part of the training loop's time that it waits for data."""

    plain: float
    training: float
    loading: float


def main() -> None:
    """Print both loops' rates."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=640, help="of a round")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="processes that load data for the training loop")
    options = parser.parse_args()
    recipe = Recipe.load("digits").replace(size=options.size, epochs=1, limit=options.images, warmup_epochs=0.0)
    rounds = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            run = train(recipe, Settings(Path(folder) / "run", workers=options.workers, progress=False))
        seconds = run.loading + run.computing
        rounds.append(Round(plain_rate(recipe), run.images / seconds, run.loading / seconds))
        print(f"round {number + 1} of {options.rounds}", flush=True)
    plain, training, loading = (statistics.median(values) for values in zip(*rounds, strict=True))
    ratio = statistics.median(row.training / row.plain for row in rounds)
    print(f"plain loop     {plain:7.1f} images per second")
    print(f"training loop  {training:7.1f}, {100 * ratio:.1f} % of the plain one's, pair by pair")
    print(f"waiting for data  {100 * loading:.1f} % of its time")


def plain_rate(recipe: Recipe) -> float:
    """Images per second of forward, backward and AdamW, on batches that are ready."""
    task = task_of(recipe)
    torch.manual_seed(recipe.seed)
    model, data = task.model().train(), task.train_data()
    batches = [task.collate([data[draw] for draw in draws]) for draws in Plan(recipe, recipe.limit).steps(0)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate)
    begin = time.perf_counter()
    for images, labels in batches:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return sum(len(images) for images, _ in batches) / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
