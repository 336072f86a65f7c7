#!/usr/bin/env bash
# Builds the whole extension for CUDA against a CUDA build of PyTorch, imports it, and runs the tests under that PyTorch.
# Needs nvcc and no GPU. In CI (CI set) for one target, else for all; TORCH_CUDA_ARCH_LIST overrides.
#
#     tests/cuda_build.sh [virtual environment, made if it is not there]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${1:-$root/.venv-cuda}
torch='torch==2.12.1'
all=$(< "$root/csrc/cuda/targets.txt")
targets=${TORCH_CUDA_ARCH_LIST:-${CI:+9.0}}
targets=${targets:-$all}
start=$SECONDS
step() { echo "== $1 ($((SECONDS - start)) s)"; }

command -v nvcc > /dev/null || { echo "cuda_build.sh: expected nvcc on PATH, got none; install the CUDA toolkit" >&2; exit 1; }

step "setting up $venv: $torch (5 GB, some minutes the first time)"
test -x "$venv/bin/python" || python3 -m venv "$venv"
pip() { "$venv/bin/python" -m pip "$@" --quiet --disable-pip-version-check; }
pip install "$torch" 'setuptools>=77' wheel ninja pybind11

step 'copying the sources, so that this build leaves the one in place alone'
copy=$root/build/cuda-copy
mkdir -p "$copy"
(cd "$root" && tar --exclude='_C*' --exclude=__pycache__ -cf - affnet_kernels benchmarks csrc tests setup.py pyproject.toml \
  Makefile README.md CONTRIBUTING.md CHANGELOG.md LICENSE MANIFEST.in) | tar -C "$copy" -xf -

step "compiling for $targets"
cd "$copy"
export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$targets MAX_JOBS=${MAX_JOBS:-2}
pip install --no-build-isolation --editable '.[triton,bench,test]'

step 'importing it'
TARGETS=$targets "$venv/bin/python" - << 'PYTHON'
import os
import torch
from affnet_kernels import _C, available_backends
info = _C.build_info()
print(info)
assert torch.version.cuda and info["cuda"] == torch.version.cuda, "built for the CUDA of this PyTorch"
assert info["torch"] == torch.__version__.split("+")[0]
assert info["cuda_targets"] == os.environ["TARGETS"]
with open("/proc/self/maps") as maps:
    loaded = {line.split()[-1] for line in maps if "libcufft.so" in line}
assert len(loaded) == 1 and "site-packages/nvidia" in min(loaded), f"one cuFFT, PyTorch's own: {loaded}"
major = info["cufft"] // 1000
assert f"libcufft.so.{major}" in min(loaded), "the version that is reported is the one that is loaded"
assert _C.plan_cache_info(0)["size"] == 0
assert _C.tensor_cores() and _C.one_launch()
assert torch._C._dispatch_has_kernel_for_dispatch_key("affnet_kernels::native_backward", "CUDA")
reasons = available_backends()
assert reasons["cpu"] == [] and reasons["cuda"] == ([] if torch.cuda.is_available() else ["no CUDA device is available"])
PYTHON

step 'running the launcher on a runtime without a device'
packages=$("$venv/bin/python" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])')
toolkit=$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
mkdir -p build/host_runtime
# Of the one-launch kernels only those that the test calls; a launch of another one would leave its answer unwritten.
one_launch=('-DAFFNET_SINGLE_INSTANCES={7,7,5},{8,8,5},{8,8,6},{8,8,10},{0,0,3},{0,0,5}' -DAFFNET_HALF_QUADS=3,5,6,10 -DAFFNET_HALF_QUADS_3=3)
g++ -O1 -std=c++20 -shared -fPIC -fvisibility=hidden -Wno-unknown-pragmas -Wl,-soname,libcuda.so.1 -Icsrc -Itests/cuda_host \
  -I"$toolkit/include" $(printf -- '-I%s ' "$packages"/nvidia/cu[0-9]*/include) -I"$packages/torch/include" \
  "${one_launch[@]}" tests/cuda_host/runtime.cpp -o build/host_runtime/libcuda.so.1
on_host_runtime() { LD_PRELOAD=$PWD/build/host_runtime/libcuda.so.1 OMP_NUM_THREADS=1 "$venv/bin/python" "$@"; }
on_host_runtime -m pytest -q -p no:cacheprovider tests/test_cuda_launcher.py
on_host_runtime -m tests.test_cuda_launcher

step 'running the tests that depend on PyTorch'
ignored=()  # what does not depend on the build, and what tests/timm.sh runs under the same PyTorch
for name in cuda_emulated cuda_mma cuda_half cuda_fused_half cuda_single cuda_single_backward census plan_cache cpu_host \
  triton_launch build timm checkpoints hub images show filters network_benchmarks boxes detect detection detection_coco \
  detection_loss detection_map distributed_checkpoints launch scenes segment segmentation segmentation_folders training \
  training_digits training_folders training_kill training_mixers; do
  ignored+=("--ignore=tests/test_$name.py")
done
OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -q -p no:cacheprovider --numprocesses 2 --dist loadgroup "${ignored[@]}"
step 'done'
