"""The backend "triton": eligibility, launch-configuration table, launch."""

from __future__ import annotations

import importlib.util
import math
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from affnet_kernels.backends.reference import hermitian_weight
from affnet_kernels.spec import MixerSpec

NAME = "triton"
MAX_SIZE = 32  # of H and W
MAX_CHANNELS = 64  # of D and Dh
SUM_BLOCK = 256


class Row(NamedTuple):
    """A launch configuration, and the calls it is for: the first row of a table that fits is taken.

    Registers and spills are those of `python -m benchmarks.compile_check`; no row has been timed on a GPU yet.
    """

    bits: int  # of x's type: 16, 32, or 0 for both
    size: int  # H and W up to
    channels: int  # D and Dh up to
    images: int  # in a tile
    piece: int  # channels a transform takes at a time; 0: all, and the tile stays in registers
    rows: int  # frequencies the map takes at a time, where the tile does not stay in registers
    warps: int
    programs: int  # per multiprocessor, where the tile does not stay in registers
    shared: int  # KiB of shared memory it takes at most
    spill: int  # bytes a thread may spill
    why: str


# Predicted forward times on an H200 at batch 64, 8 blocks, in us: the bytes of x and y at 4.3 TB/s; the products,
# padding included, at 62 % of 395 TFLOP/s in tf32 (three of each for float32); the instructions of the compiled code,
# its loops counted out, at four a cycle and 1.755 GHz on 132 multiprocessors. Predicted is a guess: twice the slowest,
# plus a launch.
# map       C  type         MB  GFLOP  bytes  matrix  issue   predicted  measured
# 32x32    64  bfloat16   16.8   1.91    3.9     7.8    18.4         40  not measured on a GPU
# 32x32    64  float32    33.6   1.91    7.8    23.4    21.4         50  not measured on a GPU
# 32x32    96  bfloat16   25.2   3.62    5.9    14.8    27.0         57  not measured on a GPU
# 32x32    96  float32    50.3   3.62   11.7    44.4    32.0         92  not measured on a GPU
# 32x32   128  bfloat16   33.6   4.43    7.8    18.1    32.2         67  not measured on a GPU
# 32x32   128  float32    67.1   4.43   15.6    54.3    38.0        112  not measured on a GPU
# 16x16   104  bfloat16    6.8   0.81    1.6     3.3    10.9         25  not measured on a GPU
# 16x16   104  float32    13.6   0.81    3.2     9.9    13.0         29  not measured on a GPU
# 16x16   160  bfloat16   10.5   2.21    2.4     9.0    17.9         39  not measured on a GPU
# 16x16   160  float32    21.0   2.21    4.9    27.1    21.8         57  not measured on a GPU
# 16x16   256  bfloat16   16.8   2.42    3.9     9.9    21.5         46  not measured on a GPU
# 16x16   256  float32    33.6   2.42    7.8    29.6    26.1         62  not measured on a GPU
# 8x8     144  bfloat16    2.4   0.81    0.5     3.3     5.3         14  not measured on a GPU
# 8x8     144  float32     4.7   0.81    1.1     9.9     6.4         23  not measured on a GPU
# 8x8     192  bfloat16    3.1   0.81    0.7     3.3     5.4         14  not measured on a GPU
# 8x8     192  float32     6.3   0.81    1.5     9.9     6.6         23  not measured on a GPU
# 8x8     320  bfloat16    5.2   2.68    1.2    11.0    14.3         32  not measured on a GPU
# 8x8     320  float32    10.5   2.55    2.4    31.2    28.4         65  not measured on a GPU
FORWARD = (
    Row(
        16, 8, 8, 2, 0, 0, 4, 0, 32, 0, "all in registers; two images share the weights and fill the products' 16 rows"
    ),
    Row(16, 8, 16, 1, 0, 0, 4, 0, 32, 0, "all in registers; a second image would spill on compute capability 8"),
    Row(16, 8, 32, 1, 32, 64, 4, 4, 32, 0, "staged in one piece: four programs a multiprocessor, in registers two"),
    Row(16, 16, 32, 1, 8, 64, 4, 4, 32, 0, "staged: in registers it takes 8 warps of over 230, one program"),
    Row(16, 32, 32, 1, 4, 64, 4, 4, 32, 0, "half the piece: 8 channels spill on compute capability 8"),
    Row(
        16,
        8,
        64,
        1,
        64,
        64,
        8,
        1,
        96,
        500,
        "weights of 128 x 128 fill the registers; CUDA C++ need not pad D = 40 to 64",
    ),
    Row(16, 32, 64, 1, 4, 64, 8, 1, 96, 500, "as above"),
    Row(32, 8, 8, 2, 0, 0, 4, 0, 32, 0, "as with 16 bits"),
    Row(32, 8, 16, 1, 0, 0, 4, 0, 48, 0, "as with 16 bits"),
    Row(32, 8, 32, 1, 32, 64, 4, 3, 48, 64, "as with 16 bits; the spill is compute capability 8's"),
    Row(32, 16, 32, 1, 8, 64, 4, 2, 48, 128, "as with 16 bits; the spill is compute capability 8's"),
    Row(32, 32, 32, 1, 4, 64, 4, 2, 48, 128, "as with 16 bits; the spill is compute capability 8's"),
    Row(32, 8, 64, 1, 16, 32, 8, 1, 96, 128, "operands in two parts: half as many frequencies as with 16 bits"),
    Row(32, 32, 64, 1, 4, 32, 8, 1, 96, 320, "operands in two parts: half as many frequencies as with 16 bits"),
)
# Most of what may spill is compute capability 10's, where the steps of a tile are inlined (see `kernels.mixer`).
BACKWARD = (
    Row(0, 32, 16, 1, 4, 64, 4, 2, 48, 600, "two spectra and the chain between them: pieces half of the forward's"),
    Row(0, 16, 32, 1, 8, 32, 8, 1, 64, 800, "fewer frequencies, more warps: eight tiles of the map are live at once"),
    Row(0, 32, 32, 1, 4, 32, 8, 1, 64, 800, "half the piece: 8 channels spill 1.7 KB on compute capability 8"),
    Row(0, 32, 64, 1, 4, 16, 8, 1, 112, 1400, "as in the forward pass; CUDA C++ is preferred here"),
)


class Tile(NamedTuple):
    """What a kernel knows at compile time; letters as in `MixerSpec`, those with a P are padded to powers of two."""

    K: int
    D: int
    DH: int
    H: int
    W: int
    F: int
    DP: int
    DHP: int
    HP: int
    WP: int
    FP: int
    NYQUIST: bool  # the Nyquist column is not among the FP
    IMAGES: int
    PIECE: int
    ROWS: int
    STAGED: bool
    APART: bool  # the steps of a staged tile are functions
    EXACT: bool  # x is of a 16-bit type, whose values are tf32 values
    PRECISION: str
    ACTIVATION: str

    @classmethod
    def of(
        cls,
        row: Row,
        blocks: int,
        size: int,
        hidden: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        precision: str,
        activation: str,
        capability: int,  # the major number
    ) -> Tile:
        # The tensor cores contract over at least 16 numbers, which are 8 pairs of re and im.
        padded_size, padded_hidden = max(8, _power_of_two(size)), max(8, _power_of_two(hidden))
        half = width // 2 + 1
        nyquist = width >= 16 and half - 1 == _power_of_two(half - 1)
        return cls(
            K=blocks,
            D=size,
            DH=hidden,
            H=height,
            W=width,
            F=half,
            DP=padded_size,
            DHP=padded_hidden,
            HP=max(16 if nyquist else 8, _power_of_two(height)),
            WP=max(16, _power_of_two(width)),
            FP=half - 1 if nyquist else max(8, _power_of_two(half)),
            NYQUIST=nyquist,
            IMAGES=row.images,
            PIECE=row.piece or padded_size,
            ROWS=row.rows,
            STAGED=row.piece > 0,
            APART=capability != 10,
            EXACT=dtype != torch.float32,
            PRECISION=precision,
            ACTIVATION=activation,
        )


def unsupported(
    spec: MixerSpec | None,
) -> list[str]:
    """Reasons why the kernels cannot run `spec`, in words; None asks about this machine alone."""
    reasons = []
    if importlib.util.find_spec("triton") is None:
        reasons.append("Triton is not installed; pip install triton")
    if spec is None:
        if not (interpreted() or torch.cuda.is_available()):
            reasons.append("no CUDA device is available")
        return reasons
    if spec.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f"expected float32, float16 or bfloat16, got {str(spec.dtype).removeprefix('torch.')}")
    if max(spec.height, spec.width) > MAX_SIZE:
        reasons.append(f"expected H and W up to {MAX_SIZE}, got {spec.height} x {spec.width}")
    if max(spec.block_size, spec.hidden_size) > MAX_CHANNELS:
        reasons.append(
            f"expected up to {MAX_CHANNELS} channels and hidden channels a block, "
            f"got {spec.block_size} and {spec.hidden_size}"
        )
    if not reasons and spec.channels * spec.height * spec.width > 2**28:  # offsets within a tile are 32-bit
        reasons.append(f"expected up to 2**28 elements an image, got {spec.channels * spec.height * spec.width}")
    if spec.device.type == "cuda":
        needed = 0 if reasons else max(find_row(table, spec).shared for table in (FORWARD, BACKWARD))
        reasons += _device_reasons(spec.device, needed)
    elif not (interpreted() and spec.device.type == "cpu"):
        reasons.append(f"expected a tensor on cuda, got one on {spec.device.type}")
    return reasons


def _device_reasons(
    device: torch.device,
    needed: int,  # KiB of shared memory
) -> list[str]:
    if torch.version.hip is not None:
        return ["expected an NVIDIA device, got an AMD one"]
    major, minor, shared, _ = _facts(device)
    if major < 8:
        return [f"expected compute capability 8.0 or more, for tf32, got {major}.{minor}"]
    if needed > shared:
        return [f"expected a device with {needed} KiB of shared memory a block for these sizes, got {shared} KiB"]
    return []


def forward(
    x: Tensor,  # [B, C, H, W]
    w1: Tensor,  # [2, K, D, Dh]
    b1: Tensor,  # [2, K, Dh]
    w2: Tensor,  # [2, K, Dh, D]
    b2: Tensor,  # [2, K, D]
    sparsity_threshold: float,
    activation: str,
) -> Tensor:  # [B, C, H, W]
    """One launch."""
    from affnet_kernels.kernels.mixer import forward_kernel

    x, w1, b1, w2, b2 = (tensor.contiguous() for tensor in (x, w1, b1, w2, b2))
    spec = MixerSpec.of(x, w1, activation)
    row = find_row(FORWARD, spec)
    tile = tile_of(row, spec, _facts(x.device)[0])
    tiles = -(-spec.batch // row.images) * spec.blocks
    programs = min(tiles, row.programs * _facts(x.device)[3]) if tile.STAGED else tiles
    y = torch.empty_like(x)
    scratch = _scratch(x, programs * 2 * spec.block_size, tile) if tile.STAGED else x
    with _on(x.device):
        forward_kernel[(programs,)](
            x,
            w1,
            b1,
            w2,
            b2,
            _matrices(tile.H, tile.W, tile.HP, tile.WP, tile.FP, x.device),
            scratch,
            y,
            spec.batch,
            sparsity_threshold,
            tile,
            **options(row),
        )
    return y


def backward(
    dy: Tensor,  # [B, C, H, W]
    x: Tensor,  # [B, C, H, W]
    w1: Tensor,  # [2, K, D, Dh]
    b1: Tensor,  # [2, K, Dh]
    w2: Tensor,  # [2, K, Dh, D]
    b2: Tensor,  # [2, K, D]
    sparsity_threshold: float,
    activation: str,
    input_grad: bool,
    parameter_grads: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # dx, dw1, db1, dw2, db2
    """One launch, and a second that sums the programs' shares of the parameters' gradients where they are asked for."""
    from affnet_kernels.kernels.mixer import backward_kernel, sum_kernel

    dy, x, w1, b1, w2, b2 = (tensor.contiguous() for tensor in (dy, x, w1, b1, w2, b2))
    spec = MixerSpec.of(x, w1, activation)
    row = find_row(BACKWARD, spec)
    tile = tile_of(row, spec, _facts(x.device)[0])
    groups = -(-spec.batch // row.images)
    shares = min(groups, max(1, row.programs * _facts(x.device)[3] // spec.blocks))
    dx = torch.empty_like(x) if input_grad else x.new_empty(0)
    parameters = (w1, b1, w2, b2)
    gradients = [torch.empty_like(p) if parameter_grads else p.new_empty(0) for p in parameters]
    sums = max(w1.numel() + b1.numel(), w2.numel() + b2.numel())
    stacked = 8 * tile.D * tile.DH + 2 * tile.D + 2 * tile.DH
    partials = x.new_empty((shares, tile.K, stacked if parameter_grads else 0), dtype=torch.float32)
    with _on(x.device):
        backward_kernel[(shares * spec.blocks,)](
            dy,
            x,
            w1,
            b1,
            w2,
            b2,
            _matrices(tile.H, tile.W, tile.HP, tile.WP, tile.FP, x.device),
            _scratch(x, shares * spec.blocks * 4 * spec.block_size, tile),
            dx,
            partials,
            spec.batch,
            sparsity_threshold,
            input_grad,
            parameter_grads,
            tile,
            **options(row),
        )
        if parameter_grads:
            sum_kernel[(-(-sums // SUM_BLOCK), 2)](
                partials, *gradients, shares, tile.K, tile.D, tile.DH, SUM_BLOCK, **OPTIONS
            )
    return dx, *gradients  # type: ignore[return-value]


OPTIONS = {"enable_fp_fusion": True}  # Triton's default is to change


def options(row: Row) -> dict[str, Any]:
    """Triton's compile options; one stage, because the loops hold no products whose operands could be loaded ahead."""
    return {**OPTIONS, "num_warps": row.warps, "num_stages": 1}


def find_row(
    table: tuple[Row, ...],
    spec: MixerSpec,
) -> Row:
    size, channels = max(spec.height, spec.width), max(spec.block_size, spec.hidden_size)
    return next(
        row
        for row in table
        if row.bits in (0, 8 * spec.dtype.itemsize) and size <= row.size and channels <= row.channels
    )


def tile_of(
    row: Row,
    spec: MixerSpec,
    capability: int,
) -> Tile:
    sizes = (spec.blocks, spec.block_size, spec.hidden_size, spec.height, spec.width)
    return Tile.of(row, *sizes, spec.dtype, precision(row, spec.dtype), spec.activation, capability)


def precision(
    row: Row,
    dtype: torch.dtype,
) -> str:
    """How products are computed, see `kernels.dft.product`: as float32 unless the user or the output allows less.

    Forward from 16-bit input takes one tf32 pass: its error of 3e-4 is below the rounding of the result, and tf32 has
    float32's range, which half precision has not: the mask's product with the spectrum is quadratic in x. Gradients do
    not, since those of float32 parameters are not rounded to 16 bits. `torch.backends.cuda.matmul.fp32_precision =
    "tf32"` (or `allow_tf32`) lets float32 and gradients take one pass too: an error of up to 1e-3 instead of 3e-7.
    """
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed or (dtype != torch.float32 and row in FORWARD) else "tf32x3"


def _scratch(x: Tensor, rows: int, tile: Tile) -> Tensor:
    return x.new_empty((rows, tile.IMAGES * tile.H * tile.F), dtype=torch.float32)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def _facts(
    device: torch.device,
) -> tuple[int, int, int, int]:
    """Compute capability, KiB of shared memory a block, multiprocessors."""
    if device.type != "cuda":
        return 0, 0, 0, 2  # the interpreter: so few that programs take several tiles each
    properties: Any = torch.cuda.get_device_properties(device)
    shared = properties.shared_memory_per_block_optin // 1024
    return properties.major, properties.minor, shared, properties.multi_processor_count


@lru_cache(maxsize=256)
def _matrices(
    height: int,
    width: int,
    padded_height: int,
    padded_width: int,
    padded_half: int,
    device: torch.device,
) -> Tensor:  # analysis along W [WP, FP, 2], its inverse [FP, 2, WP], DFT along H [HP, 2, HP, 2], all in one row
    def angles(rows: int, columns: int, period: int) -> Tensor:
        index = torch.outer(torch.arange(rows), torch.arange(columns)) % period
        return index.double() * (2 * math.pi / period)

    half = min(width // 2 + 1, padded_half)
    angle = angles(width, half, width)
    analysis = torch.zeros(padded_width, padded_half, 2, dtype=torch.float64)
    analysis[:width, :half] = torch.stack((angle.cos(), -angle.sin()), -1) / math.sqrt(width)
    if width % 2 == 0 and half > width // 2:
        analysis[:width, width // 2, 1] = 0  # sin(pi w) is not zero in floating point
    weight = hermitian_weight(width, analysis)[:half]
    synthesis = torch.zeros(padded_half, 2, padded_width, dtype=torch.float64)
    synthesis[:half, :, :width] = analysis[:width, :half].permute(1, 2, 0) * weight[:, None, None]

    angle = angles(height, height, height)
    along_h = torch.zeros(padded_height, 2, padded_height, 2, dtype=torch.float64)
    cos, sin = angle.cos() / math.sqrt(height), angle.sin() / math.sqrt(height)
    for r, s, part in ((0, 0, cos), (0, 1, sin), (1, 0, -sin), (1, 1, cos)):
        along_h[:height, r, :height, s] = part
    flat = [matrix.flatten() for matrix in (analysis, synthesis, along_h)]
    return torch.cat(flat).to(torch.float32).to(device)
