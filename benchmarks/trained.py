"""The paper's comparison: one network with five token mixers, trained under one recipe. `python -m benchmarks.trained`.

Accuracy is that of the averaged weights after the last epoch, on held-out images, so that no epoch is chosen by it.
Times are CPU times of one thread, which other programs disturb little. Every run keeps its folder, so that an
interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from affnet_kernels.models.token_mixers import MIXERS
from affnet_kernels.training import Recipe, Settings, logs, train
from affnet_kernels.training.tasks import task_of
from benchmarks.environment import commit
from benchmarks.networks import counter
from benchmarks.plots import NETWORK_COLOURS

ROUNDS, BATCH = 15, 32  # of the timing
COLOURS = {
    "fused": NETWORK_COLOURS["fused"],
    "reference": NETWORK_COLOURS["official"],
    "attention": NETWORK_COLOURS["with-attention"],
    "large-kernel": NETWORK_COLOURS["with-large-kernel"],
    "mlp": NETWORK_COLOURS["with-mlp"],
}


class Row(NamedTuple):
    """A network with one mixer on one data set: a run's accuracy for each seed, and what the network costs."""

    data: str
    mixer: str
    accuracies: list[float]  # per cent
    parameters: int
    multiply_adds: float  # of an image, FFTs not counted
    forward: float  # milliseconds an image, inference
    step: float  # milliseconds an image, forward, backward and AdamW

    @property
    def mean(self) -> float:
        """Accuracy over the seeds."""
        return statistics.fmean(self.accuracies)


def main() -> None:
    """Train, measure, and write trained.csv, trained.md and trained.png."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trained", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/trained"))
    parser.add_argument("--data", nargs="+", default=["digits", "photos"], metavar="NAME")
    parser.add_argument("--mixers", nargs="+", choices=MIXERS, default=list(MIXERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of a thread each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    recipes = {name: recipe_of(name, options.epochs) for name in options.data}
    jobs = [
        (name, mixer, recipe.replace(mixer=mixer, seed=seed))
        for name, recipe in recipes.items()
        for seed in range(options.seeds)  # a whole comparison first, then others
        for mixer in options.mixers
    ]
    accuracies: dict[str, dict[str, list[float]]] = {name: {mixer: [] for mixer in options.mixers} for name in recipes}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        results = pool.map(accuracy, [recipe for _, _, recipe in jobs], [options.out] * len(jobs))
        for (name, mixer, recipe), result in zip(jobs, results, strict=True):
            accuracies[name][mixer].append(result)
            print(f"{name}, seed {recipe.seed}, {mixer}: {result:.2f} %", flush=True)
    rows = [row for name, recipe in recipes.items() for row in measured(recipe, accuracies[name])]
    write(rows, options.out)
    print((options.out / "trained.md").read_text())


def recipe_of(data: str, epochs: int | None) -> Recipe:
    """The data's recipe; in fewer epochs, with an average over fewer steps."""
    recipe = Recipe.load(data)
    return recipe if epochs is None else recipe.replace(epochs=epochs, ema=0.9)


def accuracy(recipe: Recipe, out: Path) -> float:
    """Held-out accuracy in per cent after the last epoch of a run, which is made, or gone on with, or made already."""
    torch.set_num_threads(1)
    folder = out / f"{recipe.data}-{recipe.epochs}-{recipe.mixer}-{recipe.seed}"
    train(recipe.replace(evaluate_every=recipe.epochs), Settings(folder, resume=True, progress=False))
    return float(logs.read_rows(folder / logs.EPOCHS)[-1]["test/top1"])


def measured(recipe: Recipe, accuracies: dict[str, list[float]]) -> list[Row]:
    """What the networks cost: their times are taken in turn, a call of each."""
    images = torch.rand(BATCH, 3, recipe.size, recipe.size, generator=torch.Generator().manual_seed(0))
    networks = {mixer: task_of(recipe.replace(mixer=mixer)).model() for mixer in accuracies}
    operations = {}
    for mixer, network in networks.items():
        with counter() as count, torch.no_grad():
            network.eval()(images[:1])
        operations[mixer] = count.get_total_flops() / 2
    forward = in_turn({mixer: inference(network, images) for mixer, network in networks.items()})
    step = in_turn({mixer: training(network, images) for mixer, network in networks.items()})
    return [
        Row(
            recipe.data,
            mixer,
            accuracies[mixer],
            sum(parameter.numel() for parameter in network.parameters()),
            operations[mixer],
            forward[mixer],
            step[mixer],
        )
        for mixer, network in networks.items()
    ]


def inference(network: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    """A forward pass in eval mode."""

    @torch.no_grad()
    def call() -> object:
        return network.eval()(images)

    return call


def training(network: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    """A step of AdamW."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)
    labels = torch.arange(len(images)) % 10

    def call() -> object:
        F.cross_entropy(network.train()(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        return None

    return call


def in_turn(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median CPU time of a call in milliseconds an image, after two to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 2):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            if number >= 2:
                times[name].append(time.process_time() - begin)
    return {name: 1e3 * statistics.median(samples) / BATCH for name, samples in times.items()}


def write(rows: list[Row], out: Path) -> None:
    """The table as CSV and as text, and the picture."""
    facts = {"commit": commit(), "torch": torch.__version__}
    with (out / "trained.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*Row._fields, *facts])
        for row in rows:
            accuracies = " ".join(f"{value:.4f}" for value in row.accuracies)
            writer.writerow([*row._replace(accuracies=accuracies), *facts.values()])  # type: ignore[arg-type]
    (out / "trained.md").write_text("\n".join(table(rows)) + "\n", encoding="utf-8")
    picture(rows, out / "trained.png")


def table(rows: Iterable[Row]) -> list[str]:
    """A line a network, in Markdown."""
    lines = [
        "| data | mixer | held-out accuracy, % (lowest to highest of the seeds) | parameters, M | multiply-adds, M "
        "| forward, ms | training step, ms |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        spread = f"{row.mean:.2f} ({min(row.accuracies):.2f} to {max(row.accuracies):.2f})"
        costs = f"{row.parameters / 1e6:.2f} | {row.multiply_adds / 1e6:.1f} | {row.forward:.2f} | {row.step:.2f}"
        lines.append(f"| {row.data} | {row.mixer} | {spread} | {costs} |")
    return lines


def picture(rows: list[Row], path: Path) -> None:
    """Accuracy against multiply-adds, and against the time of a forward pass, for each data set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.data for row in rows))
    costs = {
        "multiply-adds of an image, M": lambda row: row.multiply_adds / 1e6,
        "forward pass, ms an image": forward_of,
    }
    figure = Figure(figsize=(10, 3.8 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(len(names), len(costs), squeeze=False)
    for line, name in zip(panels, names, strict=True):
        for axis, (label, cost) in zip(line, costs.items(), strict=True):
            for row in (row for row in rows if row.data == name):
                below, above = row.mean - min(row.accuracies), max(row.accuracies) - row.mean
                axis.errorbar(
                    cost(row),
                    row.mean,
                    yerr=[[below], [above]],
                    fmt="o",
                    capsize=4,
                    color=COLOURS[row.mixer],
                    label=row.mixer,
                )
            axis.set(title=name, xlabel=label, ylabel="held-out accuracy, %")
            axis.grid(alpha=0.3)
    panels[0][0].legend()
    figure.savefig(path, dpi=110)


def forward_of(row: Row) -> float:
    """The time of a forward pass."""
    return row.forward


if __name__ == "__main__":
    main()
