"""Accuracy, size and latency of int8 on scikit-learn's digits: `python -m benchmarks.quantization`, some minutes."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from affnet_kernels import AFFMixer
from affnet_kernels.export import export_onnx, quantize_onnx
from affnet_kernels.export.onnx import load_onnx
from affnet_kernels.models import AFFNet, create_model

SIZE = 96  # of the images; the mixers' maps are 12 x 12
EPOCHS, BATCH, RATE = 8, 32, 3e-3
CALIBRATION = 64  # images
NETWORKS, NETWORK_SIZE, ROUNDS = ("affnet_et", "affnet_t", "affnet"), 256, 40


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # the quantiser's advice
    with tempfile.TemporaryDirectory() as folder:
        accuracies(Path(folder))
        latencies(Path(folder))


def accuracies(folder: Path) -> None:
    """Train, quantise, and print the held-out accuracy of each variant."""
    digits = load_digits()
    images = F.interpolate(torch.from_numpy(digits.images).float()[:, None] / 16, size=SIZE, mode="bilinear")
    images, labels = images.expand(-1, 3, -1, -1), torch.from_numpy(digits.target)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.3, stratify=labels, random_state=0)
    start = time.perf_counter()
    model = trained(images[train], labels[train])
    print(f"{EPOCHS} epochs on {len(train)} digits in {time.perf_counter() - start:.0f} s")
    export_onnx(model, folder / "float32.onnx", size=SIZE)
    calibration = images[train[:CALIBRATION]]
    quantize_onnx(folder / "float32.onnx", folder / "int8.onnx", [calibration])
    quantize_everything(folder / "float32.onnx", folder / "all.onnx", calibration)

    variants = {"float32": "float32", "int8, mixers float32": "int8", "int8, mixers too": "all"}
    logits = {name: outputs(load_onnx(folder / f"{file}.onnx"), images[test]) for name, file in variants.items()}
    for mixer in mixers_of(model):
        nn.init.zeros_(mixer.w2)
        nn.init.zeros_(mixer.b2)
    logits["mixers without mask"] = outputs(model, images[test])
    exact = logits["float32"]
    print(f"{len(test)} held-out digits: accuracy, error of the logits (relative L2), predictions as in float32")
    for name, got in logits.items():
        right = (got.argmax(1) == labels[test]).double().mean()
        same = (got.argmax(1) == exact.argmax(1)).double().mean()
        error = (got - exact).norm() / exact.norm()
        print(f"  {name:<22} {100 * right:6.2f} %  {error:.3f}  {100 * same:6.2f} %", flush=True)


def trained(
    images: Tensor,  # [N, 3, H, W]
    labels: Tensor,  # [N]
) -> AFFNet:
    """A small network whose answers need its mixers: their mask starts larger than the residual."""
    torch.manual_seed(0)
    model = AFFNet((16, 24, 32, 48, 64), (1, 1, 2, 2, 2), 2, num_classes=10, output_stride=8)
    for mixer in mixers_of(model):
        nn.init.normal_(mixer.w1, std=2 * mixer.w1.shape[2] ** -0.5)
        nn.init.normal_(mixer.w2, std=2 * mixer.w2.shape[2] ** -0.5)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels))[: steps * BATCH].view(steps, BATCH):
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval()


def mixers_of(model: nn.Module) -> list[AFFMixer]:
    return [module for module in model.modules() if isinstance(module, AFFMixer)]


@torch.no_grad()
def outputs(
    run: Callable[[Tensor], Tensor | list[np.ndarray]],
    images: Tensor,  # [N, 3, H, W]
) -> Tensor:  # [N, 10]
    results = (run(batch.contiguous()) for batch in images.split(90))
    return torch.cat([torch.as_tensor(result[0] if isinstance(result, list) else result) for result in results])


def quantize_everything(path_in: Path, path_out: Path, calibration: Tensor) -> None:
    """What onnxruntime's quantiser does by itself: the mixers' spectra in int8 too."""
    from onnxruntime.quantization import QuantType, quantize_static

    images = ({"images": image.numpy()} for image in calibration.split(1))
    reader = SimpleNamespace(get_next=lambda: next(images, None))
    quantize_static(path_in, path_out, reader, per_channel=True, activation_type=QuantType.QUInt8)


def latencies(folder: Path) -> None:
    """Print file sizes, and the latency of one image on one thread in onnxruntime."""
    print(f"{NETWORK_SIZE} x {NETWORK_SIZE}, one image, one thread: medians of {ROUNDS} calls in turn")
    images = torch.rand(8, 3, NETWORK_SIZE, NETWORK_SIZE)
    for name in NETWORKS:
        files = [folder / f"{name}_{kind}.onnx" for kind in ("float32", "int8")]
        export_onnx(create_model(name).eval(), files[0], size=NETWORK_SIZE)
        quantize_onnx(*files, [images])
        runs = [load_onnx(file, one_thread=True) for file in files]
        rows = []
        for _ in range(ROUNDS + 2):
            row = []
            for run in runs:
                start = time.perf_counter()
                run(images[:1])
                row.append(1e3 * (time.perf_counter() - start))
            rows.append(row)
        float32, int8 = (median(column) for column in zip(*rows[2:], strict=True))
        sizes = " -> ".join(f"{file.stat().st_size / 1e6:.1f}" for file in files)
        speedup = median(row[0] / row[1] for row in rows[2:])
        print(f"  {name:<10} {sizes} MB, {float32:.1f} -> {int8:.1f} ms, {speedup:.2f}x", flush=True)


if __name__ == "__main__":
    main()
