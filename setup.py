"""Builds the extension `affnet_kernels._C`; where that is not possible, installs the Python package and records why.

Environment: FORCE_CUDA=1 builds for CUDA without a GPU at hand, AFFNET_SKIP_EXTENSION=1 builds no extension,
AFFNET_REQUIRE_EXTENSION=1 (and FORCE_CUDA=1) make a build that fails an error, TORCH_CUDA_ARCH_LIST and MAX_JOBS as in
every PyTorch extension.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
CPU_KERNEL = ROOT / "csrc" / "cpu" / "kernel.cpp"
INCLUDE_DIRS = [str(ROOT / "csrc"), str(ROOT / "csrc" / "cpu")]
CXX_FLAGS = ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden"]
# For at::parallel_for, at compile time only: the symbols then come from the library that PyTorch brings.
OPENMP = "-fopenmp"
DEFAULT_ARCHS = (ROOT / "csrc" / "cuda" / "targets.txt").read_text().strip()
PROBE = """
#include <Python.h>
#ifdef _OPENMP
#include <omp.h>
#endif
"""


class BuildError(Exception):
    """The extension cannot be built here; says why."""


def extension_arguments() -> dict:
    """`ext_modules` and `cmdclass` of this machine; no extension, with the reason recorded, where there can be none."""
    if is_set("AFFNET_SKIP_EXTENSION"):
        return without_extension("AFFNET_SKIP_EXTENSION=1 is set")
    if (home := cuda_home()) is not None:
        os.environ.setdefault("CUDA_HOME", home)  # before torch looks for it
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME
    except ImportError as error:
        return without_extension(
            f"torch is not importable here ({error}); pip install --no-build-isolation . uses yours"
        )
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    if shutil.which(compiler[0]) is None:
        return without_extension(f"there is no C++ compiler ({compiler[0]})")
    cuda_possible = torch.version.cuda is not None and CUDA_HOME is not None
    if is_set("FORCE_CUDA") and not cuda_possible:
        raise SystemExit(
            f"setup.py: expected a CUDA build of torch and nvcc for FORCE_CUDA=1, "
            f"got torch {torch.__version__} and CUDA_HOME={CUDA_HOME}"
        )
    if cuda_possible:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHS)
    return {
        "ext_modules": [make_extension(cuda_possible, openmp=True)],
        "cmdclass": {"build_ext": build_command(compiler, cuda_possible)},
    }


def make_extension(with_cuda: bool, openmp: bool) -> Extension:
    import torch
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    sources = [*(ROOT / "csrc").glob("*.cpp"), *(ROOT / "csrc" / "cpu").rglob("*.cpp")]
    sources.remove(CPU_KERNEL)
    macros: list[tuple[str, str]] = [("AFFNET_X86_VARIANTS", "1")] if len(cpu_variants()) > 1 else []
    flags = {"cxx": [*CXX_FLAGS, *([OPENMP] if openmp else [])]}
    if with_cuda:
        sources += (ROOT / "csrc" / "cuda").rglob("*.cu")
        macros.append(("AFFNET_WITH_CUDA", "1"))
        targets = os.environ["TORCH_CUDA_ARCH_LIST"]
        flags["cxx"] += [f'-DAFFNET_CUDA_VERSION="{torch.version.cuda}"', f'-DAFFNET_CUDA_TARGETS="{targets}"']
        flags["nvcc"] = ["-O3", "-std=c++20"]
    return (CUDAExtension if with_cuda else CppExtension)(
        "affnet_kernels._C",
        sorted(str(source.relative_to(ROOT)) for source in sources),
        depends=[str(header.relative_to(ROOT)) for header in (ROOT / "csrc").rglob("*.*h")],
        define_macros=macros,
        extra_compile_args=flags,
        **(cufft(Path(torch.__file__).parents[1]) if with_cuda else {"include_dirs": INCLUDE_DIRS}),
    )


def build_command(compiler: list[str], cuda_possible: bool) -> type:
    import torch
    from torch.utils.cpp_extension import BuildExtension

    variants = cpu_variants()

    class Build(BuildExtension):
        """Compiles the CPU kernel for each instruction set, and leaves beside the library what it was built for.

        A build for CUDA that fails is followed by one without, and that by none: then the reason is what it leaves.
        """

        def build_extension(self, extension: Extension) -> None:
            def compile_variant(name: str) -> list[str]:
                return self.compiler.compile(
                    [str(CPU_KERNEL.relative_to(ROOT))],
                    output_dir=str(Path(self.build_temp) / name),
                    macros=[("AFFNET_CAPABILITY", name)],
                    include_dirs=INCLUDE_DIRS,
                    extra_postargs=[*CXX_FLAGS, "-ffp-contract=fast", *variants[name]],
                    depends=extension.depends,
                )

            with ThreadPoolExecutor(max_workers=int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
                extension.extra_objects += chain.from_iterable(pool.map(compile_variant, variants))
            super().build_extension(extension)

        def run(self) -> None:
            facts: dict = {"torch": torch.__version__, "python": platform.python_version(), "cuda": torch.version.cuda}
            library = Path(self.get_ext_fullpath("affnet_kernels._C"))
            inplace = self.inplace
            try:
                facts |= self.build_what_is_possible()
            except Exception as error:  # whatever a compiler or its absence makes of it
                if is_required():
                    raise
                self.inplace, self.extensions = inplace, []
                facts["failed"] = f"compiling it failed: {error} (pip install --verbose shows the compiler's output)"
                say(facts["failed"])
            library.parent.mkdir(parents=True, exist_ok=True)
            (library.parent / "_C.json").write_text(json.dumps(facts) + "\n")

        def build_what_is_possible(self) -> dict:
            """Build, and say how."""
            facts: dict = {"openmp": has_openmp(compiler)}
            chosen, inplace = self.compiler, self.inplace
            for with_cuda in (True, False) if cuda_possible else (False,):
                vars(self.extensions[0]).update(vars(make_extension(with_cuda, facts["openmp"])))
                try:
                    super().run()
                except Exception as error:
                    if not with_cuda or is_required():
                        raise
                    self.compiler, self.inplace = chosen, inplace  # as before the attempt
                    facts["cuda_failed"] = str(error)
                    print(f"affnet_kernels: building without CUDA, which failed: {error}", file=sys.stderr)
                else:
                    targets = os.environ["TORCH_CUDA_ARCH_LIST"] if with_cuda else None
                    return facts | {"with_cuda": with_cuda, "cuda_targets": targets}
            raise AssertionError("the last attempt returns or raises")

    return Build


def has_openmp(compiler: list[str]) -> bool:
    """Whether `compiler` compiles the extension's kind of source with OpenMP; BuildError if it does not without."""
    if not (complaint := complaint_of(compiler, OPENMP)):
        return True
    if reason := complaint_of(compiler):
        raise BuildError(reason)
    print(f"affnet_kernels: building without OpenMP, on one thread: {complaint}", file=sys.stderr)
    return False


def complaint_of(compiler: list[str], *flags: str) -> str:
    """The first error of `compiler` for a source that includes Python.h, with C++20; "" if it compiles it."""
    include = f"-I{sysconfig.get_paths()['include']}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(PROBE)
        command = [*compiler, *CXX_FLAGS, *flags, include, "-c", str(source), "-o", str(source.with_suffix(".o"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    lines = (done.stderr + done.stdout).splitlines()
    first = [line for line in lines if "error" in line] or lines or [f"exit status {done.returncode}"]
    return f"{' '.join(compiler)}: {first[0]}"


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
    """Arguments for the Python package alone, which records the reason; an error where the extension is required."""
    if is_required():
        raise SystemExit(
            f"setup.py: expected to build the extension, required by FORCE_CUDA or AFFNET_REQUIRE_EXTENSION: {reason}"
        )
    say(reason)

    class RecordReason(build_py):
        def run(self) -> None:
            super().run()
            if not self.editable_mode:  # the sources may have a library that was built earlier
                (Path(self.build_lib) / "affnet_kernels" / "_C.json").write_text(json.dumps({"failed": reason}) + "\n")

    return {"cmdclass": {"build_py": RecordReason}}


def say(reason: str) -> None:
    print(f"affnet_kernels: building without the compiled extension: {reason}", file=sys.stderr)


def is_required() -> bool:
    return is_set("FORCE_CUDA") or is_set("AFFNET_REQUIRE_EXTENSION")


def is_set(variable: str) -> bool:
    return os.environ.get(variable) == "1"


setup(**extension_arguments())
