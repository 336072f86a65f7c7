"""What a training run tells: CSV files, TensorBoard's events, a progress bar, a picture of the curves."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from affnet_kernels.training.checkpoints import write_text

EPOCHS, STEPS = "log.csv", "steps.csv"
TRAINING, HELD_OUT = "train/", "test/"  # before the names of columns


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
            raise type(error)(
                f"train: expected to write {self.path}, got: {error.strerror}; "
                "--resume continues after the last checkpoint"
            ) from error

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


class Events:
    """TensorBoard's events, for scalars; nothing where TensorBoard is not installed, which is said.

    Args:
        folder: that they are written into.
        first_step: from which on what an interrupted run wrote is hidden.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        self.writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print("train: no TensorBoard events; pip install tensorboard", file=sys.stderr)
            return
        self.writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def add(self, values: Mapping[str, Any], step: int) -> None:
        """Write values by name.

        Raises:
            OSError: they cannot be written. TensorBoard writes behind the program's back: it may be earlier ones.
        """
        if self.writer is not None:
            with self._named():
                for name, value in values.items():
                    self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Bring the events to the file; raises as `add`."""
        if self.writer is not None:
            with self._named():
                self.writer.flush()

    def close(self) -> None:
        """End the file; raises as `add`."""
        if self.writer is not None:
            with self._named():
                self.writer.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise type(error)(
                f"train: expected to write TensorBoard's events into {self.folder}, got: {error.strerror}; "
                "--resume continues after the last checkpoint"
            ) from error


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


def draw_curves(epochs: Sequence[Mapping[str, str]], steps: Sequence[Mapping[str, str]], path: Path) -> None:
    """The losses, the metrics and the learning rate against the epoch, from the rows of log.csv and steps.csv.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the picture cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError(f"train: no picture of the curves without matplotlib: {error}") from error
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    losses, metrics, rate = figure.subplots(1, 3)
    held_out = [name.removeprefix(HELD_OUT) for name in epochs[0] if name.startswith(HELD_OUT)]
    trained = [name.removeprefix(TRAINING) for name in epochs[0] if name.startswith(TRAINING)]
    per_epoch = int(epochs[0]["step"]) / int(epochs[0]["epoch"])
    places = [int(row["step"]) / per_epoch for row in steps]
    losses.plot(places, [float(row["loss"]) for row in steps], ".", color="tab:blue", alpha=0.2, label="loss of a step")
    for name in trained:
        axes, style = (metrics, "--") if name in held_out else (losses, "-")
        plot_column(axes, epochs, f"{TRAINING}{name}", style, f"{name}, training" if name in held_out else name)
    for name in held_out:
        plot_column(metrics, epochs, f"{HELD_OUT}{name}", "-", f"{name}, held-out")
    plot_column(rate, epochs, "rate", "-", "rate")
    for axes, title in ((losses, "training loss"), (metrics, "metrics, %"), (rate, "learning rate")):
        axes.set(title=title, xlabel="epoch", ylabel=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    for axes in (losses, metrics):
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)


def plot_column(axes: Any, rows: Iterable[Mapping[str, str]], name: str, style: str, label: str) -> None:
    """A column of the rows that have it, against their epoch; the same colour for a metric in training and held-out."""
    points = [(int(row["epoch"]), float(row[name])) for row in rows if row[name]]
    metric = name.rpartition("/")[2]
    same = [line for line in axes.lines if line.get_gid() == metric]
    colour = {"color": same[0].get_color()} if same else {}
    axes.plot(*zip(*points, strict=True), style, marker=".", label=label, gid=metric, **colour)
