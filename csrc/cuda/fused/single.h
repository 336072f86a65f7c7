// The one-launch float32 kernel's interface to the launcher.
#pragma once

#include "single_arguments.h"

namespace affnet {

using SingleKernel = void (*)(SingleArguments);

// The kernel of a plan with an instance; defined in single.cu.
SingleKernel single_kernel(const SinglePlan& plan);

}  // namespace affnet
