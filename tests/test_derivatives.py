"""Derivatives by every road on which PyTorch meets the operator without eager autograd, against float64."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._dynamo.testing
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from affnet_kernels import AFFMixer, fused_aff_mixer
from affnet_kernels.backends import reference
from tests.helpers import Shape, make_inputs, relative_error

TINY = Shape(2, 4, 3, 4, 2)
OPERATOR = torch.ops.affnet_kernels.mixer_forward.default


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No graph of an earlier run: the caches on disk do not know that an operator's derivative has changed."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield


def fused(*tensors: Tensor) -> Tensor:
    return fused_aff_mixer(*tensors, sparsity_threshold=0.0, activation="silu")


def direct(*tensors: Tensor) -> Tensor:
    return torch.ops.affnet_kernels.mixer_forward(*tensors, 0.0, "silu", None)


def defined(x: Tensor, *parameters: Tensor) -> Tensor:
    return reference.mixer(x, parameters, 0.0, "silu")


ALL = (0, 1, 2, 3, 4)


def gradients(mixer: Callable[..., Tensor]) -> Callable[..., Any]:
    return torch.func.grad(lambda *tensors: mixer(*tensors).sin().sum(), argnums=ALL)


def vjp(mixer: Callable[..., Tensor]) -> Callable[..., Any]:
    return lambda *tensors: torch.func.vjp(mixer, *tensors)[1](tensors[0].cos())


def vmapped(mixer: Callable[..., Tensor]) -> Callable[..., Any]:
    """Over images: x gets an axis in front of its own."""
    return lambda x, *rest: (torch.func.vmap(lambda one: mixer(one, *rest))(torch.stack((x, x + 1))),)


def per_sample(mixer: Callable[..., Tensor]) -> Callable[..., Any]:
    one = torch.func.grad(lambda x, *rest: mixer(x[None], *rest).sin().sum(), argnums=ALL)
    return torch.func.vmap(one, in_dims=(0, None, None, None, None))


def hessian(mixer: Callable[..., Tensor]) -> Callable[..., Any]:
    loss = lambda *tensors: mixer(*tensors).sin().sum()  # noqa: E731
    return lambda *tensors: (torch.func.jacrev(torch.func.grad(loss))(*tensors),)  # over x


TRANSFORMS = {f.__name__: f for f in (gradients, vjp, vmapped, per_sample, hessian)}


def assert_agree(got: Any, expected: Any) -> None:
    got, expected = torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(expected)
    assert len(got) == len(expected) > 0
    for g, e in zip(got, expected, strict=True):
        assert relative_error(g, e) < 1e-12


@pytest.mark.parametrize("mixer", [fused, direct])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(name: str, mixer: Callable[..., Tensor]) -> None:
    tensors = make_inputs(TINY, torch.float64)
    transform = TRANSFORMS[name]
    assert_agree(transform(mixer)(*tensors), transform(defined)(*tensors))


@pytest.mark.parametrize(
    ("name", "compiler"),
    [
        *((name, compiler) for name in TRANSFORMS for compiler in ("eager", "aot_eager")),
        *((name, "inductor") for name in ("gradients", "per_sample")),
    ],
)
def test_compiled_transform(name: str, compiler: str) -> None:
    tensors = make_inputs(TINY, torch.float64)
    transform = TRANSFORMS[name]
    compiled = torch.compile(transform(fused), backend=compiler, fullgraph=True)
    assert_agree(compiled(*tensors), transform(defined)(*tensors))


def test_a_compiled_gradient_runs_the_operator() -> None:
    """Not the reference's formula, nor the operator's decomposition."""
    ran: list[str] = []

    def record(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        ran.extend(str(node.target) for node in graph.graph.nodes if "mixer" in str(node.target))
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    torch.compile(gradients(fused), backend=aot_autograd(fw_compiler=record), fullgraph=True)(
        *make_inputs(TINY, torch.float64)
    )
    assert ran == ["affnet_kernels.mixer_forward.default", "affnet_kernels.mixer_backward.default"]


@pytest.mark.parametrize("mixer", [fused, direct])
def test_batched_cotangents(mixer: Callable[..., Tensor]) -> None:
    """The forward pass runs outside of any transform, its backward pass inside of one."""
    tensors = [t.requires_grad_() for t in make_inputs(TINY, torch.float64)]
    cotangents = torch.randn(3, *tensors[0].shape, dtype=torch.float64)
    got = torch.autograd.grad(mixer(*tensors), tensors, cotangents, is_grads_batched=True)
    for i, cotangent in enumerate(cotangents):
        assert_agree([g[i] for g in got], torch.autograd.grad(defined(*tensors), tensors, cotangent))


def test_no_grad_inside_and_outside_of_a_transform() -> None:
    tensors = make_inputs(TINY, torch.float64)

    def partly(mixer: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def loss(*tensors: Tensor) -> Tensor:
            with torch.no_grad():
                constant = mixer(*tensors)
            return (constant * mixer(*tensors)).sum()

        return torch.func.grad(lambda x: torch.func.grad(loss)(x, *tensors[1:]).sin().sum())

    assert_agree(partly(fused)(tensors[0]), partly(defined)(tensors[0]))
    with torch.no_grad():
        got = gradients(fused)(*tensors)
    assert_agree(got, gradients(defined)(*tensors))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Conv2d(4, 4, 1)
        self.mixer = AFFMixer(4, 2, sparsity_threshold=0.0, activation="silu")
        self.double()
        with torch.no_grad():
            for parameter in self.mixer.parameters():
                parameter.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(self.project(x))


def network_gradients(call: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(call(x).sin().sum(), parameters)


@pytest.mark.parametrize("decomposed", [False, True])
def test_an_exported_program_is_trained_further(decomposed: bool) -> None:
    network, x = Network(), make_inputs(TINY, torch.float64)[0]
    program = torch.export.export(network, (x,))
    module = (program.run_decompositions() if decomposed else program).module()
    names = [name for name, _ in network.named_parameters()]
    got = network_gradients(module, [module.get_parameter(name) for name in names], x)
    assert_agree(got, network_gradients(network, list(network.parameters()), x))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    first = module(x).square().mean()
    first.backward()
    optimizer.step()
    assert module(x).square().mean() < first


def test_double_backward_through_an_exported_program() -> None:
    network, x = Network(), make_inputs(TINY, torch.float64)[0]
    module = torch.export.export(network, (x,)).module()

    def second(call: Callable[[Tensor], Tensor], parameters: list[Tensor]) -> tuple[Tensor, ...]:
        image = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(call(image).sin().sum(), image, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), parameters)

    names = [name for name, _ in network.named_parameters() if name != "project.bias"]
    expected = second(
        lambda image: defined(network.project(image), *network.mixer.parameters()),
        [network.get_parameter(name) for name in names],
    )
    assert_agree(second(module, [module.get_parameter(n) for n in names]), expected)


def test_a_graph_traced_without_gradients_is_trained() -> None:
    tensors = make_inputs(TINY, torch.float64)
    with torch.no_grad():
        graph = make_fx(fused)(*tensors)
    leaves = [t.requires_grad_() for t in tensors]
    assert_agree(torch.autograd.grad(graph(*leaves).sum(), leaves), torch.autograd.grad(defined(*leaves).sum(), leaves))


def test_a_dispatch_mode_sees_the_operators() -> None:
    seen: list[str] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    tensors = [t.requires_grad_() for t in make_inputs(TINY)]
    with Record():
        fused(*tensors).sum().backward()
    mixers = [name for name in seen if "mixer" in name]
    assert mixers == ["affnet_kernels.mixer_forward.default", "affnet_kernels.mixer_backward.default"]


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_threshold_schedule_compiles_twice(compiler: str, grad: bool) -> None:
    """Once for the first value and once for all others."""
    counter = torch._dynamo.testing.CompileCounterWithBackend(compiler)
    mixer = AFFMixer(4, 2, activation="silu", dtype=torch.float64).requires_grad_(grad)
    x, *parameters = make_inputs(TINY, torch.float64)
    for parameter, value in zip(mixer.parameters(), parameters, strict=True):
        parameter.data = value
    compiled = torch.compile(mixer, backend=counter, fullgraph=True)
    for step in range(12):
        mixer.sparsity_threshold = 0.02 * step + 0.01
        y = compiled(x)
        expected = reference.mixer(x, tuple(mixer.parameters()), mixer.sparsity_threshold, "silu")
        assert relative_error(y, expected) < 1e-12
        if grad:
            got = torch.autograd.grad(y.sin().sum(), mixer.w1)
            assert_agree(got, torch.autograd.grad(mixer(x).sin().sum(), mixer.w1))
    assert counter.frame_count == 2


def test_sizes_marked_dynamic_compile_once() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fused, backend=counter, fullgraph=True)
    for batch, height, width in ((3, 5, 6), (4, 7, 9), (7, 12, 5)):
        x, *parameters = make_inputs(Shape(batch, 4, height, width, 2), torch.float64)
        for axis in (0, 2, 3):
            torch._dynamo.mark_dynamic(x, axis)
        assert_agree(compiled(x, *parameters), defined(x, *parameters))
    assert counter.frame_count == 1


def test_a_batch_that_depends_on_data() -> None:
    x, *parameters = make_inputs(Shape(6, 4, 5, 6, 2), torch.float64)

    def positive(x: Tensor) -> Tensor:
        return fused(x[x.mean((1, 2, 3)) > 0], *parameters)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(positive, backend="aot_eager", fullgraph=True)
        for image in (x, -x, x - 10):  # some, the others, none
            torch.testing.assert_close(compiled(image), positive(image))


PIPELINE = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.pipelining import ScheduleGPipe, SplitPoint, pipeline
from tests.test_derivatives import Network, TINY, make_inputs

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
network = torch.nn.Sequential(Network(), Network())
x = torch.cat([make_inputs(TINY, torch.float64)[0]] * 2)
x[2:] += 1
target = torch.zeros_like(x)
expected = torch.autograd.grad((network(x) - target).square().mean(), list(network.parameters()))
expected = dict(zip([name for name, _ in network.named_parameters()], expected))
pipe = pipeline(network, (x[:2],), split_spec={"1": SplitPoint.BEGINNING})
stage = pipe.build_stage(rank, torch.device("cpu"))
schedule = ScheduleGPipe(stage, 2, loss_fn=lambda y, t: (y - t).square().mean())
schedule.step(x) if rank == 0 else schedule.step(target=target)
checked = 0
for name, parameter in stage.submod.named_parameters():
    torch.testing.assert_close(parameter.grad, expected[name])
    checked += "mixer" in name
assert checked == 4, checked
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch.distributed is not built")
def test_pipeline_stages_are_trained(tmp_path: Any) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PIPELINE, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
