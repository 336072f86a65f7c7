// The weight of a half-spectrum column, host and device.
#pragma once

#include "host_device.h"

namespace affnet {

// How many columns of the full spectrum column w of the half spectrum represents: 1 for DC and Nyquist, otherwise 2.
AFFNET_HD constexpr int hermitian_weight(int w, int width) { return w == 0 || 2 * w == width ? 1 : 2; }

}  // namespace affnet
