"""What FLOP counters report for the fused operator: the count of the same filter in eager PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from affnet_kernels import AFFMixer, flops
from tests.official_mixer import AFNO2D_channelfirst

ROOT = Path(__file__).parents[1]
LAYER = 4 * 2 * 8 * 4 * 4 * 4 * 8  # real multiply-adds: four for each complex one, B H F K D Dh of these


def mixers() -> tuple[AFNO2D_channelfirst, AFFMixer, torch.Tensor]:
    return AFNO2D_channelfirst(16, 4, hidden_size_factor=2), AFFMixer(16, 4, 2), torch.randn(2, 16, 8, 6)


def test_forward_counts_as_the_eager_filter() -> None:
    official, ours, x = mixers()
    for module in (official, ours):
        with FlopCounterMode(display=False) as counter:
            module(x)
        assert counter.get_total_flops() == 2 * 2 * LAYER


@pytest.mark.parametrize(
    ("input_grad", "parameter_grads", "layers"), [(True, True, 6), (True, False, 4), (False, True, 5)]
)
def test_backward_counts_what_is_needed(input_grad: bool, parameter_grads: bool, layers: int) -> None:
    _, ours, x = mixers()
    y = ours.requires_grad_(parameter_grads)(x.requires_grad_(input_grad))
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_flop_counts()["Global"] == {torch.ops.affnet_kernels.mixer_backward: 2 * layers * LAYER}


def test_importing_the_package_does_not_import_the_counter() -> None:
    """It would import Triton too, which takes half a second."""
    code = f"""
import sys
import torch, affnet_kernels
assert not {{"torch.utils.flop_counter", "triton"}} & set(sys.modules)
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    affnet_kernels.AFFMixer(16, 4, 2)(torch.randn(2, 16, 8, 6))
assert counter.get_total_flops() == {2 * 2 * LAYER}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_fvcore_counts_by_the_handles(grad: bool) -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    _, ours, x = mixers()
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 1, bias=False), ours)
    with torch.set_grad_enabled(grad):
        plain = fvcore.FlopCountAnalysis(model, x)
        assert plain.total() == 2 * 8 * 6 * 16 * 16, "without the handles: the convolution"
        told = fvcore.FlopCountAnalysis(model, x).set_op_handle(**flops.FVCORE_HANDLES)
        assert told.total() == plain.total() + 2 * LAYER
        assert told.by_module()["1"] == 2 * LAYER


@pytest.mark.filterwarnings("ignore")
def test_fvcore_handles_read_a_trace() -> None:
    """The same as above, for where fvcore is not installed: what it does with a trace."""
    _, ours, x = mixers()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            graph = torch.jit._get_trace_graph(ours, x)[0]
        counts = [
            flops.FVCORE_HANDLES[node.kind()](list(node.inputs()), list(node.outputs()))
            for node in graph.nodes()
            if node.kind() in flops.FVCORE_HANDLES
        ]
        assert counts == [2 * LAYER]
