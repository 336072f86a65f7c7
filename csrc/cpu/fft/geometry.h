// How the maps of a tile lie in scratch memory, as planes and as half spectra: plain data.
#pragma once

#include <cstddef>

#include "fft/plan.h"

namespace affnet {

inline constexpr int kMaxImagesLog2 = 3;

// The layout of `channels` channels of a tile of `images` images, which are transformed together.
//
// Every lane of a vector is a transform of its own. Columns first: those of all planes are numbered from plane to
// plane, `pitch` apart, and column j shares a complex transform with column j + pairs. Of each column's spectrum the
// rows 0 .. height / 2 are kept, in the row buffer. Rows 0 and height / 2 hold real numbers by then and share a complex
// row; for odd heights, the rows 0 of two planes do. Then rows: row (plane, kh) gives two slots for each kw <= width /
// 2, the frequencies (kh, kw) and (-kh, kw); a shared row gives (0, kw) and (height / 2, kw), or kw of its two planes.
//
// One image of 4 x 4, so pairs = 2:
//
//     map            column transforms     row buffer [2, re / im]       row transforms    slots of a channel
//                    (a lane each)                                        (a lane each)
//     a0 b0 c0 d0                          row 0  re: kh=0 of a b c d                     kw=0 | 0,0  1,0  2,0 -1,0
//     a1 b1 c1 d1    lane 0: a + i c              im: kh=2 of a b c d    lane 0: row 0    kw=1 | 0,1  1,1  2,1 -1,1
//     a2 b2 c2 d2    lane 1: b + i d       row 1  re: kh=1 of a b c d    lane 1: row 1    kw=2 | 0,2  1,2  2,2 -1,2
//     a3 b3 c3 d3                                 im: kh=1 of a b c d                       (kh, kw), row by row
//
// Several images fill more lanes: columns of all images, then rows of all images. The slots of one channel are
// [width / 2 + 1, 2, rows]: each frequency of the half spectrum once, except that with an odd height a lone image
// leaves slots that hold zero.
//
// Thin maps. Where the columns or rows of one channel would leave most lanes empty, several channels are transformed
// together (`runs`). Then plane p = image * channels + channel; the lanes of a vector of rows belong to different
// channels, and each lane's frequencies go to a run of consecutive slots: a channel's slots are [runs, width / 2 + 1],
// one run for each frequency (image, kh).
//
// A map of one column is transformed as if it were one row (`mirrored`, height 1). All of its frequencies are in its
// half spectrum, so that after the runs of kw <= width / 2 follow those of -kw for 0 < kw < width / 2.
template <typename T>
struct Geometry {
  int height, width, images;
  int channels;  // transformed together; 1 unless `runs`
  bool runs, mirrored;
  int pitch;  // width, or rounded up so that the columns of an image fill a vector or half of one
  int pairs;  // of columns: half their number
  int staging_stride;
  int row_stride;       // between the parts of a row: the row buffer is [(height + 1) / 2, 2, row_stride]
  int rows;             // complex rows
  int slots;            // per channel
  int slot_stride;      // between the parts, real and imaginary, of a channel's spectrum
  const int* row_re;    // [rows, rounded up to lanes] offset of a row's real part in the row buffer
  const int* row_im;    // and of its imaginary part
  const T* row_shared;  // 1 where two real rows share the complex one, else 0
  // runs: [rows, rounded up to lanes] where the two runs of a row start in the slots of the `channels` channels, and
  // where their mirrored runs do; the second run of a row without a partner is its first
  const int* run_first;
  const int* run_second;
  const int* mirrored_first;
  const int* mirrored_second;
  FftPlan<T> column_fft;
  FftPlan<T> row_fft;
  // runs: plans for columns or rows so long and so few that the lanes are elements of a single one; length 0: unused
  LongPlan<T> long_column_fft;
  LongPlan<T> long_row_fft;

  int planes() const { return images * channels; }
};

}  // namespace affnet
