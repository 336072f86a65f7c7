// The state of the CUDA backend that Python can read and set, see extension.cpp.
#pragma once

#include <cstdint>
#include <string>

#include "plan_cache.h"

namespace affnet {

int cufft_version();  // of the loaded library
PlanCacheInfo plan_cache_info(int device);
void set_plan_cache_capacity(int device, int64_t plans);
void clear_plan_cache(int device);
int64_t workspace_bound();  // bytes
void set_workspace_bound(int64_t bytes);
bool tensor_cores();
void set_tensor_cores(bool use);
bool one_launch();
void set_one_launch(bool use);
std::string map_kernel_name(int D, int Dh, bool backward);

}  // namespace affnet
