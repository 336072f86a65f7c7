"""Exports the published networks to every format whose packages are installed: errors, sizes and latencies.

    python -m tests.export_networks [network ...]

Exits with 1 if an exported file is off by more than 1e-4, or has an operator of the frequency domain.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from affnet_kernels import AFFMixer
from affnet_kernels.commands.export import FORMATS, file_size
from affnet_kernels.models import create_model
from affnet_kernels.models.inference import fuse_for_inference
from tests.networks import PUBLISHED, seeded_state_dict
from tests.test_export import FORMATS as NEEDS
from tests.test_export import FREQUENCY_DOMAIN

BOUND = 1e-4
SIZES = {"onnx": (224, 256, 320, 512)}  # of the images; the other formats at 256
TIMED = 256
ROUNDS = 30


def main(names: list[str]) -> int:
    torch.set_num_threads(1)
    failures = 0
    print(f"{'network':<10} {'format':<11} {'size':>4} {'MB':>6} {'error':>8} {'ms':>7} {'of official':>11}")
    for name in names or PUBLISHED:
        torch._dynamo.reset()
        model = create_model(name).eval()
        model.load_state_dict(seeded_state_dict(model))
        official = copy.deepcopy(model)
        for module in official.modules():
            if isinstance(module, AFFMixer):
                module.backend = "reference"
        calls: dict[str, Callable[..., Any]] = {
            "official": official,
            "fused": model,
            "folded": fuse_for_inference(model),
            "compiled": torch.compile(copy.deepcopy(model)),
        }
        facts = {}
        with tempfile.TemporaryDirectory() as folder:
            for kind, (export, load) in FORMATS.items():
                suffix, package = NEEDS[kind]
                if importlib.util.find_spec(package) is None:
                    print(f"{name:<10} {kind:<11} skipped: {package} is not installed")
                    continue
                for size in SIZES.get(kind, (TIMED,)):
                    exported = export(model, Path(folder, f"{size}.{suffix}"), size=size)
                    wrong = not (exported.error is None or exported.error <= BOUND)
                    failures += wrong or bool(FREQUENCY_DOMAIN & set(exported.operators))
                    error = "unknown" if exported.error is None else f"{exported.error:.1e}"
                    row = f"{name:<10} {kind:<11} {size:>4} {file_size(exported.path) / 1e6:>6.1f} {error:>8}"
                    run = load(exported.path, one_thread=True) if size == TIMED else None
                    if run is None:
                        print(row, flush=True)
                    else:
                        calls[kind], facts[kind] = run, row
            times = interleaved(calls, torch.randn(1, 3, TIMED, TIMED))
        for kind, seconds in times.items():
            ratio = median(a / b for a, b in zip(times["official"], seconds, strict=True))
            row = facts.get(kind, f"{name:<10} {kind:<11} {TIMED:>4} {'':>6} {'':>8}")
            print(f"{row} {1e3 * median(seconds):>7.1f} {ratio:>10.2f}x", flush=True)
    return int(failures > 0)


def interleaved(
    calls: dict[str, Callable[..., Any]],
    images: torch.Tensor,  # [1, 3, H, W]
) -> dict[str, list[float]]:  # seconds
    """The times of calls that take turns, so that what else the machine does slows all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for call in calls.values():
            call(images)
        for _ in range(ROUNDS):
            for name, call in calls.items():
                start = time.perf_counter()
                call(images)
                times[name].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
