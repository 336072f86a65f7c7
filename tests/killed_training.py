"""`python -m tests.killed_training train ...`: the command with the tests' tasks, in which processes fail as ordered.

FAILURES is a folder with an empty file for each failure, named KIND-RANK-STEP, which goes before it happens.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from affnet_kernels import __main__ as cli
from affnet_kernels.training.engine import Trainer
from tests import tiny_task  # noqa: F401  (which registers itself)

log_step = Trainer._log_step


def fail_or_log(trainer: Trainer, *arguments: Any) -> None:
    for order in Path(os.environ["FAILURES"]).iterdir():
        kind, rank, step = order.name.split("-")
        if (int(rank), int(step)) == (trainer.processes.rank, trainer._steps_done()):
            order.unlink()
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("killed_training: expected no failure, got one")
    log_step(trainer, *arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    Trainer._log_step = fail_or_log  # type: ignore[method-assign]
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
