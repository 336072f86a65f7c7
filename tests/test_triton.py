"""The Triton kernels: run in the interpreter, or on a GPU if there is one, and compiled for GPUs that are not here."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest
import torch

from affnet_kernels import MixerSpec, available_backends, fused_aff_mixer
from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.backends import reference, select
from affnet_kernels.backends import triton as backend
from affnet_kernels.backends.triton import device, launch
from affnet_kernels.backends.triton.launch_table import BACKWARD, FORWARD, MAX_CHANNELS, MAX_SIZE, Row, find_row
from affnet_kernels.spec import Parameters
from tests.helpers import (
    ROUNDING_EXTRA,
    ROUNDING_FACTOR,
    SHAPES,
    Shape,
    assert_forward,
    assert_gradients,
    branch_error,
    call,
    make_case,
    make_inputs,
    relative_error,
    stored_case,
    stored_case_names,
)

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_interpreter = pytest.mark.skipif(not backend.interpreted(), reason="needs TRITON_INTERPRET=1")

TINY = Shape(3, 16, 8, 8, 2)
SMALL = SHAPES["odd width"]
FITTING = {name: shape for name, shape in SHAPES.items() if max(shape.height, shape.width) <= MAX_SIZE}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that the interpreter runs."""
    from triton.runtime.interpreter import GridExecutor

    names: list[str] = []
    run = GridExecutor.__call__

    def counted(self, *args, **kwargs):
        names.append(self.fn.__name__)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", counted)
    return names


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[device.Facts], None]]:
    """Has launches made for a device of other properties."""

    def pretend(facts: device.Facts) -> None:
        forget()
        monkeypatch.setattr(device, "facts", lambda _: facts)

    def forget() -> None:
        launch.forward_plan.cache_clear()
        launch.backward_plan.cache_clear()

    yield pretend
    forget()


@pytest.fixture
def fast_matmul() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products as tensor cores sum them: 16 terms at a time, exactly, then rounded towards zero (arXiv 2203.03341)."""
    from triton.runtime import interpreter

    def create_dot(self, a, b, d, *_):
        total = d.data
        for k in range(0, a.data.shape[1], 16):
            exact = total + a.data[:, k : k + 16].astype(np.float64) @ b.data[k : k + 16].astype(np.float64)
            nearest = exact.astype(np.float32)
            total = np.where(abs(nearest) > abs(exact), np.nextafter(nearest, np.float32(0)), nearest)
        return interpreter.TensorHandle(total, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@needs_interpreter
@pytest.mark.parametrize("name", stored_case_names())
def test_stored_case(name: str, launches: list[str]) -> None:
    case = stored_case(name)
    y, gradients = call(case, "triton", gradients=True)
    assert launches == ["forward_kernel", "backward_kernel", "sum_kernel"]
    assert_forward(y, case)
    assert_gradients(gradients, case)


@needs_interpreter
@pytest.mark.parametrize("name", FITTING)
def test_shape(name: str) -> None:
    """Every size of the table, with at most two blocks and two images, since the interpreter is slow."""
    shape = FITTING[name]
    blocks = min(shape.blocks, 2)
    case = make_case(shape._replace(batch=min(shape.batch, 2), blocks=blocks, channels=blocks * shape.block_size))
    y, gradients = call(case, "triton", gradients=True)
    assert_forward(y, case)
    assert_gradients(gradients, case)


@needs_interpreter
@pytest.mark.parametrize(
    "shape", [Shape(1, 64, 8, 8, 1), Shape(1, 40, 8, 8, 1), Shape(1, 32, 16, 16, 1), Shape(1, 16, 32, 32, 1)]
)
def test_sums_that_round_towards_zero(shape: Shape, tensor_cores: None) -> None:
    """The longest sums that occur; each of them comes out a little too small."""
    case = make_case(shape)
    y, gradients = call(case, "triton", gradients=True)
    assert_forward(y, case)
    assert_gradients(gradients, case)
    assert branch_error(y, case) > 4e-7  # rounding shows: exact sums err by 3e-7


def spec_of(row: Row, table: tuple[Row, ...]) -> MixerSpec:
    """A small call for which `row` is chosen: just beyond what the rows before it take."""
    dtype = torch.float16 if row.bits == 16 else torch.float32
    before = [
        other for other in table[: table.index(row)] if other.bits == row.bits and other.capability <= row.capability
    ]
    smaller_sizes = [other.size for other in before if other.channels >= row.channels] or [4]
    smaller_channels = [other.channels for other in before if other.size >= row.size] or [2]
    height, size = max(smaller_sizes) + 1, max(smaller_channels) + 1
    return MixerSpec(3, 2 * size, height, 5, 2, size, dtype, torch.device("cpu"), "relu")


@needs_interpreter
@pytest.mark.parametrize(
    ("table", "row"),
    [(table, row) for table in (FORWARD, BACKWARD) for row in table],
    ids=lambda value: "-".join(map(str, value[:4])) if isinstance(value, Row) else "",
)
def test_every_launch_configuration(
    on_device: Callable[[device.Facts], None], table: tuple[Row, ...], row: Row
) -> None:
    on_device(device.Facts((row.capability, 0), 227, 2))
    spec = spec_of(row, table)
    assert find_row(table, spec, row.capability) is row
    case = make_case(Shape(3, spec.channels, spec.height, spec.width, 2), spec.dtype)
    y, gradients = call(case, "triton", gradients=table is BACKWARD)
    assert_forward(y, case)
    if gradients:
        assert_gradients(gradients, case)


@needs_interpreter
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_activation_and_dtype(dtype: torch.dtype, activation: str) -> None:
    for shape in (SMALL, SHAPES["hidden twice the block"]):
        case = make_case(shape, dtype, activation)
        y, (dx, *others) = call(case, "triton", gradients=True)
        assert (y.dtype, dx.dtype, others[0].dtype) == (dtype, dtype, torch.float32)
        if dtype == torch.bfloat16:  # the interpreter truncates to bfloat16, which errs twice as much as rounding
            for got, expected in ((y, case.y), (dx, case.gradients[0])):
                floor = relative_error(expected.to(dtype), expected)
                assert relative_error(got, expected) <= 2 * ROUNDING_FACTOR * floor + ROUNDING_EXTRA
        else:
            assert_forward(y, case)
            assert_gradients((dx, *others), case)


@needs_interpreter
def test_unknown_activation_does_not_compile() -> None:
    from triton.runtime.errors import InterpreterError

    x, *parameters = make_inputs(TINY)
    spec = MixerSpec.of(x, parameters[0], "prelu")
    with pytest.raises((InterpreterError, AssertionError), match="expected an activation of"):
        backend.forward(spec, x, Parameters(*parameters), 0.01)


@needs_interpreter
def test_tanh_is_as_accurate_as_float32_at_any_magnitude() -> None:
    from tests.activation_kernel import activation_kernel

    v = torch.cat([torch.logspace(-30, 2, 2047), torch.tensor([0.0])])
    v = torch.cat([v, -v])
    value, vjp = torch.empty_like(v), torch.empty_like(v)
    activation_kernel[(1,)](v, value, vjp, v.numel(), "tanh")
    expected = torch.tanh(v.double())
    assert ((value - expected).abs() <= 3e-7 * expected.abs()).all()
    assert ((vjp - (1 - expected**2)).abs() <= 3e-7).all()


@needs_interpreter
def test_warm_needs_the_compiler() -> None:
    with pytest.raises(RuntimeError, match="expected Triton's compiler, got its interpreter; unset TRITON_INTERPRET"):
        backend.warm([GPU_SPEC])


@needs_interpreter
def test_programs_take_several_tiles_each() -> None:
    shape = SHAPES["224 pixels, 7x7"]
    row = find_row(BACKWARD, MixerSpec.of(*make_inputs(shape)[:2]), 9)
    assert row.programs * 2 < shape.batch * shape.blocks
    y, gradients = call(make_case(shape), "triton", gradients=True)
    assert_forward(y, make_case(shape))
    assert_gradients(gradients, make_case(shape))


@needs_interpreter
@pytest.mark.parametrize(
    ("needed", "expected"),
    [
        ((True, True), ["backward_kernel", "sum_kernel"]),
        ((True, False), ["backward_kernel"]),
        ((False, True), ["backward_kernel", "sum_kernel"]),
    ],
)
def test_launches_of_the_backward(launches: list[str], needed: tuple[bool, bool], expected: list[str]) -> None:
    case = make_case(SMALL)
    x, *parameters = case.tensors
    spec = MixerSpec.of(x, parameters[0], case.activation)
    gradients = backend.backward(spec, case.dy, x, Parameters(*parameters), case.sparsity_threshold, *needed)
    assert launches == expected
    for index, (got, wanted) in enumerate(zip(gradients, case.gradients, strict=True)):
        if needed[index > 0]:
            assert relative_error(got, wanted) <= 1e-5
        else:
            assert got.shape == (0,)


class BoundsChecker:
    """Stands in for the interpreter's memory access, and notes what lies outside the tensors of a launch."""

    def __init__(self, accesses: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self._accesses = accesses
        self._tensors: list[tuple[int, int]] = []  # where each begins and ends
        self.launches = 0
        self.outside: list[str] = []
        run = launch.Launch.__call__

        def launched(kernel: launch.Launch, tensors: tuple[torch.Tensor, ...], *scalars: float) -> None:
            self._tensors = [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors]
            self.launches += 1
            run(kernel, tensors, *scalars)

        monkeypatch.setattr(launch.Launch, "__call__", launched)

    def __getattr__(self, name: str) -> object:
        return getattr(self._accesses, name)

    def _check(self, what: str, addresses: np.ndarray, mask: np.ndarray, size: int) -> None:
        addresses = addresses[np.broadcast_to(mask, addresses.shape).astype(bool)].astype(np.uint64)
        inside = np.zeros(addresses.shape, bool)
        for start, end in self._tensors:
            inside |= (addresses >= start) & (addresses + size <= end)
        if not inside.all():
            self.outside.append(f"{what} of {np.count_nonzero(~inside)} elements in launch {self.launches}")

    def load(self, addresses: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: np.dtype) -> np.ndarray:
        self._check("load", addresses, mask, np.dtype(dtype).itemsize)
        return self._accesses.load(addresses, mask, other, dtype)

    def store(self, addresses: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
        self._check("store", addresses, mask, values.dtype.itemsize)
        self._accesses.store(addresses, values, mask)


@needs_interpreter
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (TINY, torch.float32),
        (SMALL, torch.float32),
        (SHAPES["hidden three times, odd"], torch.float16),
        (Shape(1, 13, 16, 16, 1), torch.float32),
    ],
)
def test_kernels_access_their_tensors_only(monkeypatch: pytest.MonkeyPatch, shape: Shape, dtype: torch.dtype) -> None:
    from triton.runtime import interpreter

    checker = BoundsChecker(interpreter._interpreter, monkeypatch)
    monkeypatch.setattr(interpreter, "_interpreter", checker)
    case = make_case(shape, dtype)
    x, *parameters = case.tensors
    spec, parameters = MixerSpec.of(x, parameters[0], case.activation), Parameters(*parameters)
    backend.forward(spec, x, parameters, case.sparsity_threshold)
    for needed in ((True, True), (True, False), (False, True)):
        backend.backward(spec, case.dy, x, parameters, case.sparsity_threshold, *needed)
    assert checker.launches == 6
    assert checker.outside == []


@needs_interpreter
def test_tf32_follows_the_matmul_setting(fast_matmul: None) -> None:
    case = make_case(SMALL)
    y, _ = call(case, "triton")
    assert 5e-5 < branch_error(y, case) < 1e-3


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [TINY, SHAPES["224 pixels, 7x7"]._replace(batch=2, blocks=2, channels=36)])
def test_non_finite_values_stay_in_their_block(shape: Shape, value: float, dtype: torch.dtype) -> None:
    """Even if a tile holds several images."""
    x, *parameters = make_inputs(shape, dtype)
    channels = slice(shape.block_size, 2 * shape.block_size)
    x[1, shape.block_size, 0, -1] = value
    y = fused_aff_mixer(x, *parameters, backend="triton")
    assert not y[1, channels].isfinite().any()
    y[1, channels] = 0
    assert y.isfinite().all()


@needs_interpreter
def test_every_nan_survives_rounding() -> None:
    """0x7fffffff is the NaN that NVIDIA's arithmetic produces; a carry out of its fraction would turn it into -0."""
    x, *parameters = make_inputs(TINY)
    for precision in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = precision
        try:
            for bits in (0x7FFFFFFF, -1, 0x7FC00000, 0x7F800001):
                x.view(torch.int32)[0, 0, 3, 3] = bits
                assert x[0, 0, 3, 3].isnan()
                assert fused_aff_mixer(x, *parameters, backend="triton")[0, :8].isnan().all()
        finally:
            torch.backends.cuda.matmul.fp32_precision = "none"


@needs_interpreter
@pytest.mark.parametrize("shape", [TINY, SMALL, SHAPES["224 pixels, 28x28"]._replace(batch=1, blocks=1, channels=8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("x_scale", [1e-9, 1e-4, 1e4, 1e9])
@pytest.mark.parametrize("w_scale", [1e-6, 1e5])
def test_no_magnitude_overflows_or_is_lost(shape: Shape, dtype: torch.dtype, x_scale: float, w_scale: float) -> None:
    """Products are in half precision, whose range x, its spectrum, the mask and their product may all exceed."""
    x, w1, b1, w2, b2 = make_inputs(shape, dtype)
    tensors = (x_scale * x, w_scale * w1, b1, w2 / w_scale, b2)
    y = fused_aff_mixer(*tensors, sparsity_threshold=0.0, activation="silu", backend="triton")
    wide = [tensor.double() for tensor in tensors]
    expected = reference.mixer(wide[0], wide[1:], 0.0, "silu")
    if dtype == torch.float32:
        assert relative_error(y.double() - wide[0], expected - wide[0]) < 1e-6
    else:
        assert relative_error(y, expected) < 8e-3


@needs_interpreter
def test_images_of_a_tile_have_separate_scales() -> None:
    """Two images of one tile, whose values are 12 orders of magnitude apart."""
    x, *parameters = make_inputs(TINY)
    alone = fused_aff_mixer(x[:1], *parameters, backend="triton")
    x[1] *= 1e12
    row = find_row(FORWARD, MixerSpec.of(x, parameters[0]), 9)
    assert row.images > 1
    assert torch.equal(fused_aff_mixer(x, *parameters, backend="triton")[:1], alone)


@needs_interpreter
def test_gradients_repeat_bit_for_bit() -> None:
    case = make_case(SHAPES["odd both"])
    first, second = (call(case, "triton", gradients=True)[1] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_interpreter
def test_the_cpu_backend_comes_first_for_cpu_tensors() -> None:
    spec = MixerSpec.of(*make_inputs(SMALL)[:2])
    assert not backend.unsupported(spec)
    if not available_backends(spec)["cpu"]:
        assert select(spec, None).NAME == "cpu"


GPU_SPEC = MixerSpec(64, 128, 32, 32, 8, 16, torch.float32, torch.device("cuda", 0), "relu")


@pytest.mark.parametrize(
    ("changes", "facts", "expected"),
    [
        ({}, (9, 0, 227, 132), []),
        ({"dtype": torch.float64}, (9, 0, 227, 132), ["expected float32, float16 or bfloat16, got float64"]),
        ({"height": 33}, (9, 0, 227, 132), ["expected H and W up to 32, got 33 x 32"]),
        (
            {"hidden_size": 65},
            (9, 0, 227, 132),
            ["expected up to 64 channels and hidden channels per block, got 16 and 65"],
        ),
        ({}, (7, 5, 64, 40), ["expected compute capability 8.0 or more, got 7.5"]),
        ({}, (12, 0, 24, 84), ["expected a device with 33 KiB of shared memory per CTA for these sizes, got 24 KiB"]),
        (
            {"channels": 65100 * 64, "blocks": 65100, "hidden_size": 64, "height": 4, "width": 4},
            (9, 0, 227, 132),
            ["expected up to 2**31 - 1 sums for the parameters' gradients, got 2149862400"],
        ),
        (
            {"batch": 2**28},
            (9, 0, 227, 132),
            ["expected up to 2**31 - 1 blocks in a batch, got 2147483648"],
        ),
        ({"device": torch.device("meta")}, (9, 0, 227, 132), ["expected a tensor on cuda, got one on meta"]),
    ],
)
def test_reasons(
    on_device: Callable[[device.Facts], None], changes: dict, facts: tuple[int, ...], expected: list[str]
) -> None:
    on_device(device.Facts(facts[:2], *facts[2:]))
    assert backend.unsupported(GPU_SPEC._replace(**changes)) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_cuda_tensor_without_a_cuda_device_is_a_reason() -> None:
    device.facts.cache_clear()
    (reason,) = backend.unsupported(GPU_SPEC)
    assert reason.startswith("expected a CUDA device that PyTorch can use, got cuda:0: ")


def test_limits_follow_from_the_launch_tables() -> None:
    """Every size up to the limits has a row in both tables, for both widths of dtype."""
    for dtype in (torch.float32, torch.bfloat16):
        largest = {"height": MAX_SIZE, "width": MAX_SIZE, "channels": 8 * MAX_CHANNELS, "hidden_size": MAX_CHANNELS}
        spec = GPU_SPEC._replace(dtype=dtype, **largest)
        for table in (FORWARD, BACKWARD):
            for capability in (8, 9, 10, 12):
                assert find_row(table, spec, capability).size >= MAX_SIZE


def test_consumer_devices_can_run_every_shipped_shape(on_device: Callable[[device.Facts], None]) -> None:
    on_device(device.Facts((8, 9), 99, 128))
    for size, height in ((8, 32), (12, 32), (16, 32), (13, 16), (20, 16), (32, 16), (18, 8), (24, 8)):
        for dtype in (torch.float32, torch.bfloat16):
            spec = GPU_SPEC._replace(channels=8 * size, height=height, width=height, hidden_size=size, dtype=dtype)
            assert backend.unsupported(spec) == []


def without_interpreter(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


def test_a_machine_without_triton_imports_and_says_so() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; import affnet_kernels, torch; "
        "print(affnet_kernels.available_backends()['triton'][0]); assert not torch.cuda.is_initialized()"
    )
    run = without_interpreter("-W", "ignore", "-c", code)
    assert run.stdout == "Triton is not installed; pip install triton\n", run.stderr


def test_compile_check() -> None:
    """A few kernels compile for a GPU that is not here, within the limits of the launch tables."""
    run = without_interpreter("-W", "ignore", "-m", "benchmarks.static.compile_check", "--short")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("triton forward") == 4
    assert run.stdout.count("triton backward") == 8  # of 18 channels, for x alone and for the parameters alone too


PREDICTED = """
import torch
from affnet_kernels import MixerSpec
from benchmarks.static import predict
from benchmarks.static.compile_check import compile_row, inspect
import triton
tools = triton.knobs.nvidia
for channels, height in ((104, 16), (144, 32)):
    spec = MixerSpec(64, channels, height, height, 8, channels // 8, torch.bfloat16, torch.device("cuda"), "relu")
    compiled, _, tile = compile_row("forward", spec, 90)
    cubin = compiled.asm["cubin"]
    *_, static, _ = inspect(cubin, tools.cuobjdump.path, tools.nvdisasm.path)
    print(tile.STAGED, predict.instructions(cubin, tile) / static, predict.products(tile))
"""


def test_predictions_count_every_step_as_often_as_it_runs() -> None:
    run = without_interpreter("-W", "ignore", "-c", PREDICTED)
    (first, one, products), (second, many, _) = (line.split() for line in run.stdout.splitlines())
    assert (first, second) == ("False", "True"), run.stderr
    assert float(one) == 1
    assert 2 < float(many) < 8  # of the steps, which are most of the code, the least frequent runs five times
    # 16 x 16, D = 16 padded: two transforms of each kind, 8 columns, and two layers of 32 x 32 at 128 frequencies
    along_w, along_h, layer = 16 * 16 * 16 * 16, 32 * 32 * 16 * 8, 128 * 32 * 32
    assert int(products) == 2 * 2 * (along_w + along_h + layer)


@gpu
@needs_gpu
def test_one_launch_on_a_gpu() -> None:
    case = make_case(SHAPES["shipped, D=13"])
    call(case, "triton", "cuda", gradients=True)
    x, *parameters = (tensor.cuda() for tensor in case.tensors)
    dy, parameters = case.dy.cuda(), Parameters(*parameters)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        spec = MixerSpec.of(x, parameters.w1, case.activation)
        backend.forward(spec, x, parameters, case.sparsity_threshold)
        backend.backward(spec, dy, x, parameters, case.sparsity_threshold, True, True)
        torch.cuda.synchronize()
    names = [event.key for event in profile.key_averages() if event.key.endswith("_kernel")]
    assert sorted(names) == ["backward_kernel", "forward_kernel", "sum_kernel"]


@gpu
@needs_gpu
def test_graph_capture_after_one_call() -> None:
    case = make_case(SHAPES["shipped, D=20"])
    expected, gradients = call(case, "triton", "cuda", gradients=True)
    tensors = [tensor.cuda().requires_grad_() for tensor in case.tensors]
    dy = case.dy.cuda()  # a copy from pageable memory cannot be captured
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            y = fused_aff_mixer(*tensors, backend="triton")
            captured = torch.autograd.grad(y, tensors, dy)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, expected)
    assert all(torch.equal(a, b) for a, b in zip(captured, gradients, strict=True))


@gpu
@needs_gpu
def test_side_stream() -> None:
    case = make_case(SHAPES["shipped, D=18"])
    expected, _ = call(case, "triton", "cuda")
    x, *parameters = (tensor.cuda() for tensor in case.tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        y = fused_aff_mixer(x + 0, *parameters, backend="triton")
    stream.synchronize()
    assert torch.equal(y, expected)


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_than_the_current_one() -> None:
    case = make_case(SMALL)
    y, gradients = call(case, "triton", "cuda:1", gradients=True)
    assert y.device.index == 1
    assert_forward(y, case)
    assert_gradients(gradients, case)


@gpu
@needs_gpu
def test_compiles_as_one_graph() -> None:
    case = make_case(SMALL)
    tensors = [tensor.cuda() for tensor in case.tensors]
    compiled = torch.compile(lambda *args: fused_aff_mixer(*args, backend="triton"), fullgraph=True)
    assert_forward(compiled(*tensors), case)
