#!/usr/bin/env bash
# Runs the tests of what the main environment lacks (timm, torchvision, fvcore), training on folders of images among
# them, and timm's own tests of the networks, on the CPU with a PyTorch that torchvision supports. Shares the environment of
# tests/cuda_build.sh, but needs no compiler.
#
#     tests/timm.sh [virtual environment, made if it is not there]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${1:-$root/.venv-cuda}
packages=(torch==2.12.1 torchvision==0.27.1 timm==1.0.31)
start=$SECONDS
step() { echo "== $1 ($((SECONDS - start)) s)"; }
cd "$root"

step "setting up $venv: ${packages[*]} (5 GB, some minutes the first time)"
test -x "$venv/bin/python" || python3 -m venv "$venv"
pip() { "$venv/bin/python" -m pip "$@" --quiet --disable-pip-version-check; }
pip install "${packages[@]}" fvcore huggingface_hub hypothesis matplotlib numpy pillow pycocotools pytest pytest-xdist \
  safetensors scikit-learn tensorboard torchmetrics tqdm

# An extension in this tree was built for another PyTorch and is not loaded; nor shall Triton's interpreter, which is
# slow, take the place of the reference.
export TRITON_INTERPRET=0 OMP_NUM_THREADS=1
tests() { "$venv/bin/python" -m pytest -q -p no:cacheprovider --numprocesses 2 "$@"; }

step 'running the tests of what the main environment lacks'
tests tests/test_{timm,models,modules,flops,checkpoints,dense,hub,boxes,detect,detection_coco,detection_loss}.py \
  tests/test_{segmentation,training}_folders.py

step "running timm's own tests"
own=$root/build/timm
rm -rf "$own" && mkdir -p "$own"
pip download --no-deps --no-binary :all: --dest "$own" "${packages[2]}"
tar -xzf "$own"/timm-*.tar.gz -C "$own" --strip-components=2 --wildcards '*/tests/test_models.py'
cat > "$own/conftest.py" << 'PYTHON'
"""The tests take the networks from `timm.list_models`: here ours alone, and no pretrained ones."""
import timm
import affnet_kernels.models

everything = timm.list_models
timm.list_models = lambda filter="", module="", pretrained=False, **options: (
    [] if filter or pretrained else everything("affnet*", **options)
)
PYTHON
# Neither those of torch.jit.script, which the mixer does not support, nor those for transformers.
tests -c /dev/null --rootdir "$own" -W ignore "$own/test_models.py" -k 'affnet and not torchscript and not non_std'
step 'done'
