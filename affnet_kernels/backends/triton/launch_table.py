"""How the Triton kernels are launched: the tables of launch configurations, and the choice of a row."""

from __future__ import annotations

from typing import NamedTuple

from affnet_kernels.spec import MixerSpec


class Row(NamedTuple):
    """A launch configuration and the calls it is for: the first row of a table that fits a call is taken.

    `python -m benchmarks.static.compile_check` checks shared memory and spills; no row has been timed on a GPU yet.
    """

    bits: int  # of x's dtype: 16, 32, or 0 for both
    capability: int  # the lowest major compute capability
    size: int  # the largest H or W
    channels: int  # the largest D or Dh
    images: int  # of a tile
    channel_chunk: int  # channels that are transformed at a time; 0: all of them, and the tile stays in registers
    frequency_chunk: int  # frequencies that are mapped at a time, if the tile does not stay in registers
    warps: int
    programs: int  # per multiprocessor, if the tile does not stay in registers
    shared: int  # KiB of shared memory, at most
    spill: int  # bytes that a thread may spill
    why: str


# Forward times on an H200 at batch 64 with 8 blocks, in us, by `python -m benchmarks.static.predict`: three lower
# bounds, and an estimate: twice the highest of them plus a launch.
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
# fmt: off
FORWARD = (
    # bits, capability, size, channels, images, channel chunk, frequency chunk, warps, programs, shared, spill, why
    Row(16, 8,  8, 16, 2,  0,   0, 4, 0, 16,   0, "in registers; two images share the weights and fill the products"),
    Row(16, 8,  8, 32, 1,  0,   0, 4, 0, 16,   8, "in registers; two images would spill; 8 bytes are capability 10's"),
    Row(16, 9,  8, 64, 1,  0,   0, 4, 0, 64,   0, "in registers; 8 warps issue 1.6 times as many instructions"),
    Row(16, 8,  8, 64, 1, 32,  64, 8, 2, 48,   8, "staged: in registers it would spill 0.7 KB without wgmma"),
    Row(16, 8, 16, 16, 1,  0,   0, 4, 0, 16,   0, "in registers; two programs per multiprocessor"),
    Row(16, 9, 16, 32, 1,  0,   0, 8, 0, 48,   0, "in registers; 4 warps would spill 136 bytes"),
    Row(16, 8, 16, 32, 1,  8, 128, 4, 2, 24,   0, "staged: in registers it would spill without wgmma"),
    Row(16, 8, 32, 16, 1,  4, 128, 4, 4, 17,   0, "staged, four programs; in registers D = 16 would spill 0.9 KB"),
    Row(16, 8, 32, 32, 1,  4, 128, 4, 2, 24, 112, "as above; the spill is capability 10's"),
    Row(16, 8, 32, 64, 1,  4,  64, 8, 1, 48,  40, "as above, with weights of 128 x 128"),
    Row(32, 8,  8, 16, 2,  0,   0, 4, 0, 24,   0, "as with 16 bits"),
    Row(32, 8,  8, 32, 1,  0,   0, 4, 0, 32,  64, "as with 16 bits; the spill is capability 8's at odd widths"),
    Row(32, 9,  8, 64, 1,  0,   0, 4, 0, 96,  80, "as with 16 bits; staged, it issues 2.5 times as many instructions"),
    Row(32, 8,  8, 64, 1, 16,  32, 8, 1, 80,   0, "as with 16 bits"),
    Row(32, 8, 16, 16, 1,  0,   0, 4, 0, 28, 400, "in registers; the Nyquist column of W = 16 spills, W = 14 does not"),
    Row(32, 9, 16, 32, 1,  0,   0, 8, 0, 68,   0, "as with 16 bits"),
    Row(32, 8, 16, 32, 1,  8,  64, 4, 3, 32,   8, "as with 16 bits"),
    Row(32, 8, 32,  8, 1,  8, 128, 4, 2, 49, 160, "staged in one chunk; the spill is capability 8's and 10's"),
    Row(32, 8, 32, 16, 1,  4, 128, 4, 3, 33,   0, "as with 16 bits"),
    Row(32, 8, 32, 32, 1,  4,  64, 4, 3, 33,  56, "fewer frequencies, or it would spill; what does is capability 10's"),
    Row(32, 8, 32, 64, 1,  4,  32, 8, 1, 80, 176, "as above"),
)
# Most of what may spill is compute capability 10's, where the steps of a tile are inlined (see `kernels.mixer`).
BACKWARD = (
    # bits, capability, size, channels, images, channel chunk, frequency chunk, warps, programs, shared, spill, why
    Row( 0, 8, 32, 16, 1,  4,  64, 4, 2, 33, 352, "two spectra and the chain between: fewer frequencies than forward"),
    Row( 0, 8, 16, 32, 1,  8,  32, 4, 2, 33, 400, "4 warps: 8 issue 1.3 times as many instructions"),
    Row( 0, 8, 32, 32, 1,  4,  32, 4, 2, 33, 480, "half the channel chunk of the row above"),
    Row( 0, 8,  8, 64, 1, 16,  32, 8, 1, 80, 344, "eight tiles of the map are live at once, with weights of 128 x 128"),
    Row( 0, 8, 32, 64, 1,  4,  16, 8, 1, 80, 464, "as above; CUDA C++ is preferred for these sizes"),
)
# fmt: on

MAX_SIZE = min(max(row.size for row in table) for table in (FORWARD, BACKWARD))  # of H and W
MAX_CHANNELS = min(max(row.channels for row in table) for table in (FORWARD, BACKWARD))  # of D and Dh


def find_row(
    table: tuple[Row, ...],
    spec: MixerSpec,
    capability: int,  # the major number
) -> Row:
    """The row for `spec`, whose sizes are at most MAX_SIZE and MAX_CHANNELS."""
    size, channels = max(spec.height, spec.width), max(spec.block_size, spec.hidden_size)
    return next(
        row
        for row in table
        if row.bits in (0, 8 * spec.dtype.itemsize)
        and capability >= row.capability
        and size <= row.size
        and channels <= row.channels
    )
