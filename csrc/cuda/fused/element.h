// The types of x and y.
#pragma once

namespace affnet {

enum class Element { kFloat64, kFloat32, kFloat16, kBfloat16 };

}  // namespace affnet
