"""What a training run tells: CSV files, TensorBoard's events, a progress bar, a picture of the curves."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from affnet_kernels.training.checkpoints import write_text

EPOCHS, STEPS = "log.csv", "steps.csv"
PREFIXES = ("train/", "test/")


class Table:
    """A CSV file with a column `step`, one row at a time. A resumed run drops the rows after its checkpoint."""

    def __init__(self, path: Path, resumed_at: int | None) -> None:
        self.path = path
        self.rows = [row for row in read_rows(path) if int(row["step"]) <= resumed_at] if resumed_at else []
        self._rewrite()

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row. A name that no row had becomes a column.

        Raises:
            OSError: the file cannot be written.
        """
        text = {name: format_value(value) for name, value in row.items()}
        known = bool(self.rows) and text.keys() <= self.rows[0].keys()
        self.rows.append(text)
        if not known:
            columns = list(dict.fromkeys(name for row in self.rows for name in row))
            self.rows = [{name: row.get(name, "") for name in columns} for row in self.rows]
            self._rewrite()
            return
        self.rows[-1] = {name: text.get(name, "") for name in self.rows[0]}
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, list(self.rows[0])).writerow(self.rows[-1])
        except OSError as error:
            raise type(error)(f"train: expected to write {self.path}, got: {error.strerror}") from error

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        if self.rows:
            writer = csv.DictWriter(text, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        write_text(self.path, text.getvalue())


def format_value(value: Any) -> str:
    """A number with all its digits, so that curves can be compared bit for bit."""
    return repr(value) if isinstance(value, float) else str(value)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The complete rows of a CSV file; a process that is killed may leave half a row."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    complete = text[: text.rfind("\n") + 1]
    return [row for row in csv.DictReader(complete.splitlines()) if None not in row.values() and row["step"].isdigit()]


def events(folder: Path, first_step: int) -> Any:
    """TensorBoard's writer, which hides what an interrupted run wrote from `first_step` on; None if not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("train: no TensorBoard events; pip install tensorboard", file=sys.stderr)
        return None
    return SummaryWriter(str(folder), purge_step=first_step or None)


class Progress:
    """tqdm's bar over the steps of a run; silent where tqdm is missing or nobody looks."""

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self.bar: Any = None
        if shown:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, disable=None)

    def advance(self, text: str) -> None:
        """One step further."""
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update()

    def say(self, text: str) -> None:
        """A line on standard error that leaves the bar whole."""
        if self.bar is not None and not self.bar.disable:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()


def draw_curves(rows: Iterable[Mapping[str, str]], path: Path) -> None:
    """Every column of `log.csv` that is a loss, a metric or the rate, against the epoch.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"train: no picture of the curves without matplotlib: {error}") from error
    kept = list(rows)
    groups = {
        "training loss and its parts": [name for name in kept[0] if name.startswith(PREFIXES[0])],
        "held-out metrics": [name for name in kept[0] if name.startswith(PREFIXES[1])],
        "learning rate": ["rate"],
    }
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(figure.subplots(1, len(groups)), groups.items(), strict=True):
        for name in names:
            points = [(int(row["epoch"]), float(row[name])) for row in kept if row[name]]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=name.partition("/")[2] or name)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    figure.savefig(path, dpi=100)
