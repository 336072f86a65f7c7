"""Which images make up which step, as a pure function of the recipe and the epoch; the loader that fetches them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from affnet_kernels.training.recipe import Recipe

SUBSTITUTES = 100  # images in a row that may be unreadable


class Draw(NamedTuple):
    """What a sampler asks a data set for. The sample is a pure function of it."""

    index: int  # type: ignore[assignment] # a tuple has a method of that name
    seed: int  # of this sample's augmentation
    size: tuple[int, int]  # H, W of the batch


class Batch(NamedTuple):
    """What the loader gives: the task's images and targets, and what could not be read."""

    images: Tensor  # [B, 3, H, W], float32 in [0, 1]
    targets: Any
    skipped: list[str]  # a sentence for each sample that is not in the batch, or that another stands in for


def seed_of(*parts: int | str) -> int:
    """A seed that depends on every part, below 2**63."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


class Plan:
    """The steps of every epoch.

    Args:
        recipe: its seed, batch, size and sizes count.
        count: images of the training data.

    Raises:
        ValueError: there are no images, or fewer than a step's batch needs processes and parts.
    """

    def __init__(self, recipe: Recipe, count: int) -> None:
        if count < 1:
            raise ValueError(f"Plan: expected training data, got {count} images in {recipe.data}")
        self.recipe, self.count = recipe, count
        self.sizes = recipe.sizes or (recipe.size,)
        # A step costs the same at every size. Without as many images as a batch has, all of them are a batch.
        self.batches = [min(count, max(1, round(recipe.batch * (recipe.size / size) ** 2))) for size in self.sizes]
        self._ends = torch.tensor([len(self._steps(epoch)) for epoch in range(recipe.epochs)]).cumsum(0).tolist()

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self._ends[-1]

    def first(self, epoch: int) -> int:
        """Steps before an epoch."""
        return self._ends[epoch - 1] if epoch else 0

    def length(self, epoch: int) -> int:
        """Steps of an epoch."""
        return self._ends[epoch] - self.first(epoch)

    def _steps(self, epoch: int) -> list[int]:
        """The index into `sizes` for each step of an epoch. An incomplete last batch is left out."""
        if len(self.sizes) == 1:
            return [0] * (self.count // self.batches[0])
        generator = torch.Generator().manual_seed(seed_of(self.recipe.seed, epoch, "sizes"))
        choices = torch.randint(len(self.sizes), (self.count // min(self.batches) + 1,), generator=generator)
        ends = torch.tensor(self.batches)[choices].cumsum(0)
        return choices[: max(1, int((ends <= self.count).sum()))].tolist()

    def steps(self, epoch: int) -> Iterator[list[Draw]]:
        """The draws of each step of an epoch, over all processes."""
        generator = torch.Generator().manual_seed(seed_of(self.recipe.seed, epoch, "order"))
        order = torch.randperm(self.count, generator=generator).tolist()
        seeds = torch.randint(2**63 - 1, (self.count,), generator=generator)
        start = 0
        for choice in self._steps(epoch):
            rows, size = order[start : start + self.batches[choice]], self.sizes[choice]
            start += len(rows)
            yield [Draw(row, int(seeds[row]), (size, size)) for row in rows]


class StepSampler(Sampler[list[Draw]]):
    """A process's share of an epoch, from some step on: `accumulate` lists of draws for each step."""

    def __init__(self, plan: Plan, rank: int, world_size: int) -> None:
        self.plan, self.rank, self.world_size = plan, rank, world_size
        self.epoch = self.start = 0
        needed = world_size * plan.recipe.accumulate
        if (least := min(plan.batches)) < needed:
            raise ValueError(
                f"StepSampler: expected at least an image for each of {world_size} processes and "
                f"{plan.recipe.accumulate} parts of a step, got steps of {least} images; make batch larger"
            )

    def begin(self, epoch: int, start: int) -> None:
        """Iterate over `epoch` next, without its first `start` steps."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return (self.plan.length(self.epoch) - self.start) * self.plan.recipe.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        parts = self.plan.recipe.accumulate
        for number, draws in enumerate(self.plan.steps(self.epoch)):
            if number >= self.start:
                for part in range(parts):
                    # A part holds the same images for any number of processes, and BatchNorm the same statistics.
                    yield share(draws, part * self.world_size + self.rank, parts * self.world_size)


def share(draws: Sequence[Draw], index: int, count: int) -> list[Draw]:
    """The contiguous part of that index, of `count` parts as equal as can be."""
    return list(draws[len(draws) * index // count : len(draws) * (index + 1) // count])


def held_out_batches(count: int, size: int, batch: int, rank: int, world_size: int) -> list[list[Draw]]:
    """A process's share of the test data, in batches. Every sample is in one share."""
    draws = share([Draw(index, 0, (size, size)) for index in range(count)], rank, world_size)
    return [draws[start : start + batch] for start in range(0, len(draws), batch)]


class Readable(Dataset[tuple[Any, list[str]]]):
    """A data set, or an evenly spread part of it, whose unreadable samples are named instead of raised.

    Args:
        dataset: raises ValueError or OSError, which name the file, for what it cannot read.
        limit: samples of it that are used, 0 for all.
        substitute: whether the next readable sample stands in, so that training keeps its batches.
    """

    def __init__(self, dataset: Dataset[Any], limit: int, substitute: bool) -> None:
        self.dataset, self.substitute = dataset, substitute
        self.total = len(dataset)  # type: ignore[arg-type]
        self.count = min(self.total, limit or self.total)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, draw: Draw) -> tuple[Any, list[str]]:
        skipped: list[str] = []
        for offset in range(SUBSTITUTES if self.substitute else 1):
            index = (draw.index + offset) % self.count * self.total // self.count
            sample, fault = self._read(draw._replace(index=index))
            if fault is None:
                return sample, skipped
            skipped.append(fault)
        if self.substitute:
            raise ValueError(f"train: expected readable samples, got {SUBSTITUTES} in a row that are not: {skipped[0]}")
        return None, skipped

    def _read(self, draw: Draw) -> tuple[Any, str | None]:
        try:
            return self.dataset[draw], None
        except (ValueError, OSError) as error:
            return None, str(error)


class Collate:
    """The task's `collate`, and the skipped ones' names; None in place of an empty batch."""

    def __init__(self, collate: Callable[[list[Any]], tuple[Tensor, Any]]) -> None:
        self.collate = collate

    def __call__(self, rows: list[tuple[Any, list[str]]]) -> Batch | list[str]:
        skipped = [sentence for _, sentences in rows for sentence in sentences]
        samples = [sample for sample, _ in rows if sample is not None]
        return Batch(*self.collate(samples), skipped) if samples else skipped


def loader(
    data: Readable,
    batches: Sampler[list[Draw]] | list[list[Draw]],
    collate: Callable[[list[Any]], tuple[Tensor, Any]],
    *,
    workers: int,
    device: torch.device,  # that the batches go to
) -> DataLoader[Any]:
    """PyTorch's loader of those batches. Its workers live as long as it does."""
    return DataLoader(
        data,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=Collate(collate),
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
