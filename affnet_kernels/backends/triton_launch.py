"""How the Triton kernels are launched for a call: tables of configurations, and what follows from a row of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from affnet_kernels.spec import MixerSpec


class Row(NamedTuple):
    """A launch configuration, and the calls it is for: the first row of a table that fits is taken.

    Registers and spills are those of `python -m benchmarks.compile_check`; no row has been timed on a GPU yet.
    """

    bits: int  # of x's type: 16, 32, or 0 for both
    capability: int  # major compute capability from which on
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


# Forward times on an H200 at batch 64, 8 blocks, in us, by `python -m benchmarks.predict`: three ceilings, and a guess,
# twice the highest and a launch.
# map         C  type        MB  GFLOP  bytes  matrix  issue   predicted  measured
# 32x32      64  bfloat16  16.8   1.95    3.9     3.2   14.8          33  not measured on a GPU
# 32x32      64  float32   33.6   1.95    7.8     9.5   17.8          39  not measured on a GPU
# 32x32      96  bfloat16  25.2   3.76    5.9     6.1   20.9          45  not measured on a GPU
# 32x32      96  float32   50.3   3.76   11.7    18.4   30.2          63  not measured on a GPU
# 32x32     128  bfloat16  33.6   4.56    7.8     7.4   24.5          52  not measured on a GPU
# 32x32     128  float32   67.1   4.56   15.6    22.3   35.9          75  not measured on a GPU
# 16x16     104  bfloat16   6.8   0.67    1.6     1.1    5.2          13  not measured on a GPU
# 16x16     104  float32   13.6   0.67    3.2     3.3    9.2          21  not measured on a GPU
# 16x16     160  bfloat16  10.5   1.88    2.4     3.1    9.0          21  not measured on a GPU
# 16x16     160  float32   21.0   1.88    4.9     9.2   14.6          32  not measured on a GPU
# 16x16     256  bfloat16  16.8   1.88    3.9     3.1    9.0          21  not measured on a GPU
# 16x16     256  float32   33.6   1.88    7.8     9.2   14.6          32  not measured on a GPU
# 8x8       144  bfloat16   2.4   0.81    0.5     1.3    3.5          10  not measured on a GPU
# 8x8       144  float32    4.7   0.81    1.1     3.9    5.5          14  not measured on a GPU
# 8x8       192  bfloat16   3.1   0.81    0.7     1.3    3.5          10  not measured on a GPU
# 8x8       192  float32    6.3   0.81    1.5     3.9    5.7          14  not measured on a GPU
# 8x8       320  bfloat16   5.2   2.68    1.2     4.4    6.5          16  not measured on a GPU
# 8x8       320  float32   10.5   2.68    2.4    13.1   11.1          29  not measured on a GPU
#
# bits, capability, size, channels, images, piece, rows, warps, programs, shared, spill
FORWARD = (
    Row(16, 8, 8, 16, 2, 0, 0, 4, 0, 16, 0, "in registers; two images share the weights and fill the products' rows"),
    Row(
        16,
        8,
        8,
        32,
        1,
        0,
        0,
        4,
        0,
        16,
        8,
        "in registers; two images would spill; 8 bytes are capability 10's",
    ),
    Row(16, 9, 8, 64, 1, 0, 0, 4, 0, 64, 0, "in registers; 8 warps issue 1.6 times as many instructions"),
    Row(16, 8, 8, 64, 1, 32, 64, 8, 2, 48, 8, "staged: in registers it would spill 0.7 KB without wgmma"),
    Row(16, 8, 16, 16, 1, 0, 0, 4, 0, 16, 0, "in registers, all of them: two programs a multiprocessor"),
    Row(16, 9, 16, 32, 1, 0, 0, 8, 0, 48, 0, "in registers; 4 warps would spill 136 bytes"),
    Row(16, 8, 16, 32, 1, 8, 128, 4, 2, 24, 0, "staged: in registers it would spill without wgmma"),
    Row(16, 8, 32, 16, 1, 4, 128, 4, 4, 17, 0, "staged, four programs; in registers it would spill 0.9 KB, of D = 16"),
    Row(16, 8, 32, 32, 1, 4, 128, 4, 2, 24, 112, "as above; the spill is compute capability 10's"),
    Row(16, 8, 32, 64, 1, 4, 64, 8, 1, 48, 40, "as above, with weights of 128 x 128"),
    Row(32, 8, 8, 16, 2, 0, 0, 4, 0, 24, 0, "as with 16 bits"),
    Row(32, 8, 8, 32, 1, 0, 0, 4, 0, 32, 64, "as with 16 bits; what spills is compute capability 8's, of odd widths"),
    Row(32, 9, 8, 64, 1, 0, 0, 4, 0, 96, 80, "as with 16 bits; staged in pieces it issues 2.5 times as much"),
    Row(32, 8, 8, 64, 1, 16, 32, 8, 1, 80, 0, "as with 16 bits"),
    Row(32, 8, 16, 16, 1, 0, 0, 4, 0, 28, 400, "in registers; the Nyquist column of W = 16 spills, W = 14 does not"),
    Row(32, 9, 16, 32, 1, 0, 0, 8, 0, 68, 0, "as with 16 bits"),
    Row(32, 8, 16, 32, 1, 8, 64, 4, 3, 32, 8, "as with 16 bits"),
    Row(32, 8, 32, 8, 1, 8, 128, 4, 2, 49, 160, "staged in one piece; the spill is compute capability 8's and 10's"),
    Row(32, 8, 32, 16, 1, 4, 128, 4, 3, 33, 0, "as with 16 bits"),
    Row(32, 8, 32, 32, 1, 4, 64, 4, 3, 33, 56, "fewer frequencies, or it would spill; what does is capability 10's"),
    Row(32, 8, 32, 64, 1, 4, 32, 8, 1, 80, 176, "as above"),
)
# Most of what may spill is compute capability 10's, where the steps of a tile are inlined (see `kernels.mixer`).
BACKWARD = (
    Row(0, 8, 32, 16, 1, 4, 64, 4, 2, 33, 352, "two spectra and the chain between: fewer frequencies than forward"),
    Row(0, 8, 16, 32, 1, 8, 32, 4, 2, 33, 400, "four warps: eight issue 1.3 times as many instructions"),
    Row(0, 8, 32, 32, 1, 4, 32, 4, 2, 33, 480, "half the piece of the row above"),
    Row(0, 8, 8, 64, 1, 16, 32, 8, 1, 80, 344, "eight tiles of the map are live at once, with weights of 128 x 128"),
    Row(0, 8, 32, 64, 1, 4, 16, 8, 1, 80, 464, "as above; CUDA C++ is preferred here"),
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
    EXACT: bool  # x is of a 16-bit type: its low halves are zero
    EXPONENT: int  # images are scaled to 2 to this: their spectra then fit float16
    PASSES: int  # products for one product, see `kernels.product`
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
        passes: int,
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
            EXPONENT=14 - (height * width - 1).bit_length(),
            PASSES=passes,
            ACTIVATION=activation,
        )


OPTIONS = {"enable_fp_fusion": True}  # Triton's default is to change


def options(row: Row) -> dict[str, Any]:
    """Triton's compile options; one stage, because the loops hold no products whose operands could be loaded ahead."""
    return {**OPTIONS, "num_warps": row.warps, "num_stages": 1}


def find_row(
    table: tuple[Row, ...],
    spec: MixerSpec,
    capability: int,
) -> Row:
    size, channels = max(spec.height, spec.width), max(spec.block_size, spec.hidden_size)
    return next(
        row
        for row in table
        if row.bits in (0, 8 * spec.dtype.itemsize)
        and capability >= row.capability
        and size <= row.size
        and channels <= row.channels
    )


def tile_of(
    row: Row,
    spec: MixerSpec,
    capability: int,
) -> Tile:
    sizes = (spec.blocks, spec.block_size, spec.hidden_size, spec.height, spec.width)
    return Tile.of(row, *sizes, spec.dtype, passes(row, spec.dtype), spec.activation, capability)


def passes(
    row: Row,
    dtype: torch.dtype,
) -> int:
    """How products are computed, see `kernels.product`: as float32 unless the user or the output allows less.

    Forward from 16-bit input takes one pass: its error of 3e-4 is below the rounding of y. Gradients do not: those of
    the float32 parameters are not rounded to 16 bits, and one pass would cost them 5e-4 for a quarter of the backward's
    instructions. `torch.backends.cuda.matmul.fp32_precision = "tf32"` (or `allow_tf32`) lets float32 and gradients take
    one pass too: an error of up to 1e-3 instead of 3e-7.
    """
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return 1 if allowed or (dtype != torch.float32 and row in FORWARD) else 3


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
