// A stand-in for libcuda.so.1, on which Triton's JIT and launcher run without a GPU: every call succeeds and does
// nothing, and each launch leaves its name, grid and first parameters to be read.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef int Result;

enum { kAttributeComputeCapabilityMajor = 75, kAttributeComputeCapabilityMinor = 76 };
enum { kAttributeMultiprocessorCount = 16, kAttributeSharedMemoryPerBlockOptin = 97 };
enum { kFunctionMaxThreadsPerBlock = 0, kFunctionNumRegs = 4 };
enum { kRecordedLaunches = 4, kRecordedParameters = 16 };

typedef struct {
  char name[64];
  unsigned grid[3];
  unsigned threads;
  unsigned shared_bytes;
  uint64_t parameters[kRecordedParameters];
} Launch;

static Launch launches[kRecordedLaunches];
static long launch_count = 0;
static int parameter_counts[kRecordedLaunches];

// A function handle is an index into these names.
static char function_names[256][64];
static uintptr_t function_count = 0;

// For the tests: start anew, with the number of parameters to record of each launch; how many launches there were; one
// of the last of them.
void stub_record(const int counts[kRecordedLaunches]) {
  launch_count = 0;
  memcpy(parameter_counts, counts, sizeof parameter_counts);
}
long stub_launch_count(void) { return launch_count; }
const Launch* stub_launch(long index) { return &launches[index % kRecordedLaunches]; }

typedef struct {
  unsigned grid[3], block[3], shared_bytes;
  void *stream, *attributes;
  unsigned attribute_count;
} LaunchConfig;

Result cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters, void** extra) {
  const int slot = launch_count++ % kRecordedLaunches;
  Launch* launch = &launches[slot];
  memcpy(launch->name, function_names[(uintptr_t)function % 256], sizeof launch->name);
  memcpy(launch->grid, config->grid, sizeof launch->grid);
  launch->threads = config->block[0];
  launch->shared_bytes = config->shared_bytes;
  for (int i = 0; i < parameter_counts[slot]; ++i)  // 8 bytes of each; a 32-bit parameter is their low half
    memcpy(&launch->parameters[i], parameters[i], 8);
  return 0;
}

Result cuModuleGetFunction(void** function, void* module, const char* name) {
  uintptr_t index = ++function_count;
  strncpy(function_names[index % 256], name, sizeof function_names[0] - 1);
  *function = (void*)index;
  return 0;
}

Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case kAttributeComputeCapabilityMajor:
      *value = 9;
      break;
    case kAttributeComputeCapabilityMinor:
      *value = 0;
      break;
    case kAttributeMultiprocessorCount:
      *value = 132;
      break;
    case kAttributeSharedMemoryPerBlockOptin:
      *value = 227 << 10;
      break;
    default:
      *value = 1 << 16;
  }
  return 0;
}

Result cuFuncGetAttribute(int* value, int attribute, void* function) {
  *value = attribute == kFunctionMaxThreadsPerBlock ? 1024 : attribute == kFunctionNumRegs ? 64 : 0;
  return 0;
}

Result cuPointerGetAttribute(void* value, int attribute, uint64_t pointer) {
  *(uint64_t*)value = pointer;
  return 0;
}

Result cuGetErrorString(Result result, const char** text) {
  *text = "an error of the stand-in for libcuda";
  return 0;
}

Result cuInit(unsigned flags) { return 0; }
Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
Result cuCtxGetCurrent(void** context) { return *context = (void*)1, 0; }
Result cuCtxSetCurrent(void* context) { return 0; }
Result cuDevicePrimaryCtxRetain(void** context, int device) { return *context = (void*)1, 0; }
Result cuModuleLoadData(void** module, const void* image) { return *module = (void*)2, 0; }
Result cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
Result cuFuncSetCacheConfig(void* function, int config) { return 0; }
Result cuOccupancyMaxActiveClusters(int* clusters, void* function, const void* config) { return *clusters = 1, 0; }
Result cuCtxSetLimit(int limit, size_t value) { return 0; }
Result cuCtxGetLimit(size_t* value, int limit) { return *value = 1 << 20, 0; }
Result cuTensorMapEncodeTiled(void) { return 0; }
Result cuTensorMapEncodeIm2col(void) { return 0; }

// From Triton 3.9 on.
Result cuDriverGetVersion(int* version) { return *version = 13000, 0; }
Result cuDeviceGetCount(int* count) { return *count = 1, 0; }
Result cuCtxGetDevice(int* device) { return *device = 0, 0; }
Result cuModuleUnload(void* module) { return 0; }
Result cuStreamIsCapturing(void* stream, int* status) { return *status = 0, 0; }
