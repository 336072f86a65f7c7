// Why a call is not made in one launch, in words.
#pragma once

#include <string>

#include "path.h"

namespace affnet {

inline const char* name_of(Element element) {
  switch (element) {
    case Element::kFloat64:
      return "float64";
    case Element::kFloat32:
      return "float32";
    case Element::kFloat16:
      return "float16";
    case Element::kBfloat16:
      return "bfloat16";
  }
  __builtin_unreachable();
}

// The kernel of a call that is one launch, as its template arguments name it, enumerators as numbers.
inline std::string kernel_name(const Path& path, Element element, bool backward) {
  const auto number = [](int value) { return std::to_string(value); };
  if (computes_in_half(element, backward)) {
    const HalfPlan& plan = path.half;
    return "half_forward_kernel<" + number(plan.tiles) + ", " + number(plan.quads) + ", " + number(plan.whole ? 1 : 0) +
           ">";
  }
  const SingleInstance& instance = kSingleInstances[path.single.instance];
  return std::string(backward ? "single_vjp_kernel<" : "single_forward_kernel<") + number(instance.H) + ", " +
         number(instance.W) + ", " + number(instance.quads) + ">";
}

// Empty if it is made in one launch.
inline std::string in_words(const Path& path, const PathFacts& f) {
  const auto number = [](int64_t value) { return std::to_string(value); };
  const auto by = [&](int64_t a, int64_t b) { return number(a) + " x " + number(b); };
  switch (path.refusal) {
    case Refusal::kNone:
      return "";
    case Refusal::kSwitchedOff:
      return "one launch is switched off by set_one_launch";
    case Refusal::kDevice:
      return "one launch needs compute capability " + number(kLeastCapability / 10) + "." +
             number(kLeastCapability % 10) + ", the device has " + number(f.capability / 10) + "." +
             number(f.capability % 10);
    case Refusal::kType:
      return std::string("no one-launch kernel takes ") + name_of(f.element);
    case Refusal::kSizes:
      return std::string("no one-launch kernel takes ") + (f.backward ? "the backward pass of " : "") + "maps of " +
             by(f.H, f.W) + " in blocks of " + number(f.D) + " channels and " + number(f.Dh) + " hidden ones";
    case Refusal::kSharedMemory:
      return "one launch would take " + number(path.launch.shared_bytes / 1024) +
             " KiB of shared memory, a CTA of the device has " + number(shared_limit(f.capability) / 1024);
  }
  __builtin_unreachable();
}

}  // namespace affnet
