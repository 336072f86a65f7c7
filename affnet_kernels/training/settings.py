"""Where and with what means a run is trained, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True)
class Settings:
    """What does not change the result of a run: where it is written, and how fast it runs.

    Attributes:
        out: the folder.
        resume: continue the run in `out`; without one there, start it.
        save_every: steps from one checkpoint within an epoch to the next, 0 for none. Every epoch ends with one.
        log_every: steps from one row of steps.csv to the next.
        workers: processes that load data, 0 for the training process itself.
        progress: whether to show a progress bar, on a terminal.
    """

    out: Path
    resume: bool = False
    save_every: int = 0
    log_every: int = 10
    workers: int = 0
    progress: bool = True


class Summary(NamedTuple):
    """A finished run."""

    metric: str  # the name of what the best epoch is best in
    best: float
    best_epoch: int  # counted from 1
    epochs: int
    seconds: float  # of the whole run, the parts before it was resumed included
    images: int  # seen in training
    loading: float  # seconds of these spent waiting for data
    computing: float  # seconds spent in forward, backward and optimiser
    skipped: list[str]  # a sentence for each file that could not be read since the run was last resumed
