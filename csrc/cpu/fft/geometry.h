// How the maps of a tile lie in scratch memory, as planes and as half spectra: plain data.
#pragma once

#include <cstddef>

#include "fft/plan.h"

namespace affnet {

inline constexpr int kMaxImagesLog2 = 3;

// The layout of `channels` channels of a tile of `images` images, which are transformed together.
//
// Every lane of a vector is a transform of its own. The columns are transformed first. They are numbered across all
// planes, those of one plane starting `pitch` after those of the plane before, and column j shares a complex transform
// with column j + pairs. The row buffer receives rows 0 .. height / 2 of each column's spectrum. Rows 0 and height / 2
// are real by then and share a complex row; if the height is odd, the rows 0 of two planes share one. Transforming row
// kh of a plane gives two slots for each kw <= width / 2, the frequencies (kh, kw) and (-kh, kw). A shared row gives
// (0, kw) and (height / 2, kw), or kw of its two planes.
//
// For one image of 4 x 4 with columns a, b, c and d, so that pairs = 2:
//
//     map            column transforms   row buffer [2, re/im]       row transforms    slots (kh, kw) of a channel
//
//     a0 b0 c0 d0                        row 0  re: kh=0 of a b c d                    kw=0: 0,0  1,0  2,0 -1,0
//     a1 b1 c1 d1    lane 0: a + i c            im: kh=2 of a b c d  lane 0: row 0     kw=1: 0,1  1,1  2,1 -1,1
//     a2 b2 c2 d2    lane 1: b + i d     row 1  re: kh=1 of a b c d  lane 1: row 1     kw=2: 0,2  1,2  2,2 -1,2
//     a3 b3 c3 d3                               im: kh=1 of a b c d
//
// With several images, the columns of all images and then the rows of all images fill the lanes. The slots of a channel
// are [width / 2 + 1, 2, rows] and hold each frequency of the half spectrum once, except that a lone image of odd
// height leaves slots that hold zero.
//
// Thin maps (`runs`): where the columns or rows of one channel would leave most lanes empty, several channels are
// transformed together. Plane p = image * channels + channel, and the lanes of a vector of rows belong to different
// channels. The frequencies of each lane go to a run of consecutive slots, so that the slots of a channel are
// [images, height, width / 2 + 1], with kh modulo the height.
//
// A map of one column (`mirrored`) is transformed as one row, with height = 1. Its half spectrum holds all of its
// frequencies: the runs of kw <= width / 2 are followed by the mirrored runs, of -kw for 0 < kw < width / 2.
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
