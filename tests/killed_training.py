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
from tests import small_task  # which registers itself and the tiny task

log_step = Trainer._log_step


def fail_or_log(trainer: Trainer, *arguments: Any) -> None:
    for order in Path(os.environ["FAILURES"]).iterdir():
        kind, rank, step = order.name.split("-")
        if (int(rank), int(step)) == (trainer.processes.rank, trainer._steps_done()):
            order.unlink()
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(f"killed_training: expected no failure, got one in {small_task.__name__}")
    log_step(trainer, *arguments)


if __name__ == "__main__":
    Trainer._log_step = fail_or_log  # type: ignore[method-assign]
    sys.exit(cli.main())
