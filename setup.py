"""Builds the extension `affnet_kernels._C` where torch and a compiler are there; else installs the Python package.

Environment: FORCE_CUDA=1 builds for CUDA without a GPU at hand, AFFNET_SKIP_EXTENSION=1 builds no extension,
TORCH_CUDA_ARCH_LIST and MAX_JOBS as in every PyTorch extension.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent.resolve()
CPU_KERNEL = ROOT / "csrc" / "cpu" / "kernel.cpp"
INCLUDE_DIRS = [str(ROOT / "csrc"), str(ROOT / "csrc" / "cpu")]
DEFAULT_ARCHS = "8.0;8.9;9.0;10.0"


def extension_arguments() -> dict:
    """`ext_modules` and `cmdclass` of this machine; empty, with the reason printed, where nothing can be built."""
    if os.environ.get("AFFNET_SKIP_EXTENSION") == "1":
        return without_extension("AFFNET_SKIP_EXTENSION=1 is set")
    if (home := cuda_home()) is not None:
        os.environ.setdefault("CUDA_HOME", home)  # before torch looks for it
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        return without_extension(
            f"torch is not importable here ({error}); pip install --no-build-isolation . uses yours"
        )
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        return without_extension(f"there is no C++ compiler ({compiler})")

    forced = os.environ.get("FORCE_CUDA") == "1"
    possible = torch.version.cuda is not None and CUDA_HOME is not None
    if forced and not possible:
        raise SystemExit(
            f"setup.py: expected a CUDA build of torch and nvcc for FORCE_CUDA=1, "
            f"got torch {torch.__version__} and CUDA_HOME={CUDA_HOME}"
        )
    with_cuda = possible
    sources = [ROOT / "csrc" / "extension.cpp", *(ROOT / "csrc" / "cpu").rglob("*.cpp")]
    sources.remove(CPU_KERNEL)
    variants = cpu_variants()
    macros: list[tuple[str, str]] = [("AFFNET_X86_VARIANTS", "1")] if len(variants) > 1 else []
    cxx_flags = ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden"]
    # OpenMP for at::parallel_for, at compile time only: the symbols then come from the library that PyTorch brings.
    flags = {"cxx": [*cxx_flags, "-fopenmp"]}
    if with_cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHS)
        sources += (ROOT / "csrc" / "cuda").glob("*.cu")
        macros.append(("AFFNET_WITH_CUDA", "1"))
        targets = os.environ["TORCH_CUDA_ARCH_LIST"]
        flags["cxx"] += [f'-DAFFNET_CUDA_VERSION="{torch.version.cuda}"', f'-DAFFNET_CUDA_TARGETS="{targets}"']
        flags["nvcc"] = ["-O3", "-std=c++20"]

    class Build(BuildExtension):
        """Compiles the CPU kernel for each instruction set, and leaves beside the library what it was built for."""

        def build_extension(self, extension: Extension) -> None:
            def compile_variant(name: str) -> list[str]:
                return self.compiler.compile(
                    [str(CPU_KERNEL.relative_to(ROOT))],
                    output_dir=str(Path(self.build_temp) / name),
                    macros=[("AFFNET_CAPABILITY", name)],
                    include_dirs=INCLUDE_DIRS,
                    extra_postargs=[*cxx_flags, "-ffp-contract=fast", *variants[name]],
                    depends=extension.depends,
                )

            with ThreadPoolExecutor(max_workers=int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
                extension.extra_objects += chain.from_iterable(pool.map(compile_variant, variants))
            super().build_extension(extension)

        def run(self) -> None:
            super().run()
            facts = {"torch": torch.__version__, "python": platform.python_version(), "cuda": torch.version.cuda}
            facts["cuda_targets"] = os.environ["TORCH_CUDA_ARCH_LIST"] if with_cuda else None
            target = Path(self.get_ext_fullpath("affnet_kernels._C")).parent / "_C.json"
            target.write_text(json.dumps(facts | {"with_cuda": with_cuda}) + "\n")

    extension = (CUDAExtension if with_cuda else CppExtension)(
        "affnet_kernels._C",
        sorted(str(source.relative_to(ROOT)) for source in sources),
        depends=[str(header.relative_to(ROOT)) for header in (ROOT / "csrc").rglob("*.*h")],
        define_macros=macros,
        extra_compile_args=flags,
        **(cufft(Path(torch.__file__).parents[1]) if with_cuda else {"include_dirs": INCLUDE_DIRS}),
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": Build}}


def cuda_home() -> str | None:
    """Where nvcc's own headers and libraries are: the nvcc on PATH may be a script somewhere else."""
    if shutil.which("nvcc") is None:
        return None
    said = subprocess.run(["nvcc", "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    found = re.search(r"^#\$ TOP=(.+)$", said.stderr, re.MULTILINE)
    return str(Path(found[1]).resolve()) if found else None


def cufft(packages: Path) -> dict:
    """The arguments that find the cuFFT which PyTorch itself loads: a package beside it, or the toolkit's."""
    for folder in (*(packages / "nvidia").glob("cu[0-9]*"), packages / "nvidia" / "cufft"):
        for library in (folder / "lib").glob("libcufft.so.*"):
            beside = f"-Wl,-rpath,$ORIGIN/../{folder.relative_to(packages)}/lib"
            return {
                "include_dirs": [*INCLUDE_DIRS, str(folder / "include")],
                "extra_link_args": [str(library), beside, f"-Wl,-rpath,{library.parent}"],
            }
    return {"include_dirs": INCLUDE_DIRS, "libraries": ["cufft"]}


def cpu_variants() -> dict[str, list[str]]:
    """The CPU kernel's variants, by the name of their C++ namespace, and the compiler's options for each."""
    variants = {"baseline": list[str]()}
    if platform.machine().lower() in ("x86_64", "amd64"):
        variants["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
        variants["avx512"] = [*variants["avx2"], "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
    return variants


def without_extension(reason: str) -> dict:
    print(f"affnet_kernels: building without the compiled extension: {reason}", file=sys.stderr)
    return {}


setup(**extension_arguments())
