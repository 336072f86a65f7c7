"""What PyTorch's own machinery sees: derivatives, compilation, export, transforms, autocast."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from affnet_kernels import AFFMixer, MixerSpec, fused_aff_mixer, ops
from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.backends import BACKENDS, select
from tests.helpers import SHAPES, Shape, leaf, make_case, make_inputs, relative_error

TINY = Shape(2, 4, 3, 4, 2)
SMALL = SHAPES["odd height"]
CPU_BACKENDS = ("reference", "cpu")


def loss(*tensors: Tensor, backend: str | None = None) -> Tensor:
    return fused_aff_mixer(*tensors, backend=backend).sin().sum()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_gradcheck(backend: str, activation: str) -> None:
    tensors = [leaf(t) for t in make_case(TINY, torch.float64, activation).tensors]

    def call(*args: Tensor) -> Tensor:
        return fused_aff_mixer(*args, activation=activation, backend=backend)

    assert torch.autograd.gradcheck(call, tensors, eps=1e-7, atol=1e-5)
    assert torch.autograd.gradgradcheck(call, tensors, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("needed", [(True, False), (False, True), (True, True)])
def test_gradgradcheck_of_a_subset(needed: tuple[bool, bool]) -> None:
    case = make_case(TINY, torch.float64)
    tensors = [leaf(t, needed[index > 0]) for index, t in enumerate(case.tensors)]
    assert torch.autograd.gradgradcheck(fused_aff_mixer, tensors, eps=1e-7, atol=1e-5)


LAYOUTS = {
    "contiguous": lambda t: t,
    "permuted": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "channels_last": lambda t: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_opcheck_forward(backend: str, layout: str, dtype: torch.dtype) -> None:
    tensors = [LAYOUTS[layout](t) for t in make_inputs(SMALL, dtype)]
    torch.library.opcheck(torch.ops.affnet_kernels.mixer_forward.default, (*tensors, 0.01, "relu", backend))


@pytest.mark.parametrize("flags", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_opcheck_backward(backend: str, layout: str, flags: tuple[bool, bool]) -> None:
    x, *parameters = (LAYOUTS[layout](t) for t in make_inputs(SMALL))
    dy = torch.randn_like(x)
    arguments = (dy, x, *parameters, 0.01, "silu", backend, *flags)
    torch.library.opcheck(torch.ops.affnet_kernels.mixer_backward.default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", [None, *CPU_BACKENDS])
def test_compile(backend: str | None, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda *tensors: loss(*tensors, backend=backend), fullgraph=True, dynamic=dynamic)
    first = SMALL._replace(batch=3)  # a batch of 2 would be taken for the 2 of [2, K, D, Dh] and made static with it
    sizes = (first, SMALL._replace(batch=5, height=7, width=6)) if dynamic else (first,)
    for shape in sizes:
        tensors = [t.requires_grad_() for t in make_inputs(shape)]
        expected = torch.autograd.grad(loss(*tensors, backend=backend), tensors)
        with torch._dynamo.config.patch(error_on_recompile=shape is not first):
            gradients = torch.autograd.grad(compiled(*tensors), tensors)
        for got, want in zip(gradients, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # another path: the operator's body runs with some dispatch keys excluded
        torch.testing.assert_close(compiled(*tensors), loss(*tensors, backend=backend))


def test_compiled_backward_op_without_autograd() -> None:
    """A lazy conjugate in an operator's body would be ignored here."""
    torch._dynamo.reset()
    x, *parameters = make_inputs(SMALL)
    arguments = (torch.randn_like(x), x, *parameters, 0.01, "relu", "reference", True, True)
    op = torch.ops.affnet_kernels.mixer_backward
    compiled = torch.compile(lambda *args: op(*args), fullgraph=True)
    for got, want in zip(compiled(*arguments), op(*arguments), strict=True):
        torch.testing.assert_close(got, want)


def test_export_is_not_bound_to_a_backend() -> None:
    mixer = AFFMixer(24, 4)
    x = make_inputs(SMALL)[0]
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(mixer, (x,), dynamic_shapes={"x": sizes})
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert [node.target for node in calls] == [torch.ops.affnet_kernels.mixer_forward.default]
    assert None in calls[0].args, "the backend is chosen where the program runs"
    other = make_inputs(SMALL._replace(batch=3, height=6, width=11))[0]
    torch.testing.assert_close(program.module()(other), mixer(other))


def test_func_grad() -> None:
    tensors = make_inputs(SMALL)
    wanted = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(loss(*wanted), wanted)
    got = torch.func.grad(loss, argnums=(0, 1, 2, 3, 4))(*tensors)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)


@pytest.mark.parametrize("batched", [s for n in range(1, 6) for s in itertools.combinations(range(5), n)])
def test_vmap(batched: tuple[int, ...]) -> None:
    """Over any subset of arguments, along any axis, forward and gradients."""
    instances = [make_inputs(TINY, torch.float64, seed) for seed in range(3)]
    alone = [[instances[i if index in batched else 0][index] for index in range(5)] for i in range(3)]
    axes = tuple((index % instances[0][index].dim()) if index in batched else None for index in range(5))
    stacked = [
        torch.stack([one[index] for one in instances], axis) if axis is not None else instances[0][index]
        for index, axis in enumerate(axes)
    ]
    got = torch.func.vmap(fused_aff_mixer, in_dims=axes)(*stacked)
    torch.testing.assert_close(got, torch.stack([fused_aff_mixer(*tensors) for tensors in alone]))
    gradient = torch.func.grad(loss, argnums=(0, 1, 2, 3, 4))
    per_instance = [gradient(*tensors) for tensors in alone]
    for index, got in enumerate(torch.func.vmap(gradient, in_dims=axes)(*stacked)):
        torch.testing.assert_close(got, torch.stack([one[index] for one in per_instance]))


def test_jacrev() -> None:
    tensors = make_inputs(TINY, torch.float64)
    jacobians = torch.func.jacrev(fused_aff_mixer, argnums=(0, 1))(*tensors)
    wanted = torch.autograd.functional.jacobian(lambda x, w1: fused_aff_mixer(x, w1, *tensors[2:]), tensors[:2])
    for got, expected in zip(jacobians, wanted, strict=True):
        torch.testing.assert_close(got, expected)


def test_hessian_vector_product() -> None:
    tensors = make_case(TINY, torch.float64, "silu").tensors

    def of_x(x: Tensor, backend: str) -> Tensor:
        return fused_aff_mixer(x, *tensors[1:], activation="silu", backend=backend).sin().sum()

    for vector in (torch.ones_like(tensors[0]), torch.randn_like(tensors[0])):
        products = [
            torch.autograd.functional.vhp(lambda x, name=name: of_x(x, name), tensors[0], vector)[1]
            for name in CPU_BACKENDS
        ]
        torch.testing.assert_close(*products)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
def test_forward_mode_raises(context: Any) -> None:
    tensors = make_inputs(TINY)
    with context(), pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(lambda x: loss(x, *tensors[1:]), tensors[:1], tensors[:1])
    with context(), forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        loss(forward_ad.make_dual(tensors[0], tensors[0]), *tensors[1:])


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_autocast_changes_nothing(backend: str) -> None:
    """bfloat16 in, bfloat16 out, computed in float32."""
    case = make_case(SMALL, torch.bfloat16)
    plain = fused_aff_mixer(*case.tensors, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        inside = fused_aff_mixer(*case.tensors, backend=backend)
        wide = fused_aff_mixer(case.tensors[0].float(), *case.tensors[1:], backend=backend)
    assert inside.dtype == torch.bfloat16
    assert torch.equal(inside, plain)
    assert wide.dtype == torch.float32
    assert relative_error(wide, case.y) < 1e-6


def test_inference_mode_and_no_grad() -> None:
    tensors = [t.requires_grad_() for t in make_inputs(SMALL)]
    expected = fused_aff_mixer(*tensors)
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            y = fused_aff_mixer(*tensors)
            assert not y.requires_grad
            assert torch.equal(y, expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant: bool) -> None:
    tensors = [t.requires_grad_() for t in make_inputs(SMALL)]
    expected = torch.autograd.grad(loss(*tensors), tensors)
    value = checkpoint(loss, *tensors, use_reentrant=use_reentrant)
    value.backward()
    for tensor, gradient in zip(tensors, expected, strict=True):
        assert torch.equal(tensor.grad, gradient)


@pytest.fixture
def general_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the shortcut of plain eager calls, every call goes through the operator."""
    monkeypatch.setattr(ops, "EXTENSION", None)


NEEDED = [(True, True), (True, False), (False, True)]


@pytest.mark.usefixtures("general_way")
@pytest.mark.parametrize(("input_grad", "parameter_grads"), NEEDED)
def test_only_what_is_needed_is_computed(
    input_grad: bool, parameter_grads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = make_inputs(SMALL)
    backend = select(MixerSpec.of(*tensors[:2]), None)
    asked: list[tuple[bool, bool]] = []
    compute = backend.backward

    def spy(*arguments: Any) -> Any:
        asked.append(arguments[-2:])
        return compute(*arguments)

    monkeypatch.setattr(backend, "backward", spy)
    tensors = [t.requires_grad_(parameter_grads if index else input_grad) for index, t in enumerate(tensors)]
    loss(*tensors).backward()
    assert asked == [(input_grad, parameter_grads)]


def mixer_events(tensors: list[Tensor], **options: Any) -> list[Any]:
    """What PyTorch's profiler sees of the mixer's operators, forward and backward."""
    with torch.profiler.profile(record_shapes=True) as profiler:
        fused_aff_mixer(*tensors, **options).sum().backward()
    return [event for event in profiler.events() if event.name.startswith("affnet_kernels::")]


@pytest.mark.skipif(ops.EXTENSION is None, reason="the extension is not built")
@pytest.mark.parametrize(("input_grad", "parameter_grads"), NEEDED)
def test_only_what_is_needed_is_computed_in_eager_mode(input_grad: bool, parameter_grads: bool) -> None:
    tensors = [t.requires_grad_(parameter_grads if i else input_grad) for i, t in enumerate(make_inputs(SMALL))]
    forward, backward = mixer_events(tensors)
    assert (forward.name, backward.name) == ("affnet_kernels::native_forward", "affnet_kernels::native_backward")
    assert backward.concrete_inputs[-2:] == [input_grad, parameter_grads]


@pytest.mark.skipif(ops.EXTENSION is None, reason="the extension is not built")
@pytest.mark.parametrize(
    ("backend", "seen"),
    [
        (None, ["native_forward", "native_backward"]),
        ("cpu", ["native_forward", "native_backward"]),
        ("reference", ["mixer_forward", "mixer_backward"]),
    ],
)
def test_the_named_backend_runs_in_eager_mode(backend: str | None, seen: list[str]) -> None:
    events = mixer_events([t.requires_grad_() for t in make_inputs(SMALL)], backend=backend)
    assert [event.name.removeprefix("affnet_kernels::") for event in events] == seen


@pytest.mark.usefixtures("general_way")
@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_the_named_backend_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for backend in BACKENDS:

        def spy(*arguments: Any, backend: Any = backend, compute: Any = backend.forward) -> Tensor:
            ran.append(backend.NAME)
            return compute(*arguments)

        monkeypatch.setattr(backend, "forward", spy)
    fused_aff_mixer(*make_inputs(SMALL), backend=name)
    assert ran == [name]
