"""The stand-in for libcuda: its build, its activation as Triton's driver, and what it has recorded."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("libcuda.c")
LIBRARY = "libcuda.so.1"
RECORDED = 4  # launches, as in libcuda.c


def build(
    folder: Path,
) -> dict[str, str]:
    """Compiles the stand-in into `folder`; returns the environment of a process that Triton shall run on it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("expected a C compiler on PATH, got none")
    command = [compiler, "-shared", "-fPIC", "-O1", "-w", f"-Wl,-soname,{LIBRARY}", "-o", LIBRARY, str(SOURCE)]
    subprocess.run(command, cwd=folder, check=True)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    path = f"{folder}:{environment['LD_LIBRARY_PATH']}" if environment.get("LD_LIBRARY_PATH") else str(folder)
    return environment | {"LD_LIBRARY_PATH": path, "TRITON_LIBCUDA_PATH": str(folder)}


class Launch(ctypes.Structure):
    """What `stub_launch` returns, as in libcuda.c."""

    _fields_ = (
        ("_name", ctypes.c_char * 64),
        ("_grid", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint),
        ("shared_bytes", ctypes.c_uint),
        ("_parameters", ctypes.c_uint64 * 16),
    )

    @property
    def name(self) -> str:
        return self._name.decode()

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(self._grid)

    @property
    def parameters(self) -> tuple[int, ...]:
        return tuple(self._parameters)


class Recorder(NamedTuple):
    """Reads launches from the stand-in that this process has loaded."""

    library: ctypes.CDLL

    def start(
        self,
        *parameters: int,  # of the first launch to record, of the second, ...: no more than the kernel has
    ) -> None:
        self.library.stub_record((ctypes.c_int * RECORDED)(*parameters))

    def launches(self) -> list[Launch]:
        """Those since `start`."""
        count = self.library.stub_launch_count()
        if count > RECORDED:
            raise RuntimeError(f"expected at most {RECORDED} launches, got {count}")
        return [Launch.from_buffer_copy(self.library.stub_launch(i).contents) for i in range(count)]


def activate() -> Recorder:
    """Makes the stand-in, one device of compute capability 9.0, Triton's driver in this process."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import driver as nvidia
    from triton.runtime import driver

    library = ctypes.CDLL(LIBRARY)
    library.stub_launch_count.restype = ctypes.c_long
    library.stub_launch.argtypes = [ctypes.c_long]
    library.stub_launch.restype = ctypes.POINTER(Launch)

    class StubDriver(nvidia.CudaDriver):  # asks torch.cuda for nothing
        def __init__(self):
            self.utils = nvidia.CudaUtils()
            self.launcher_cls = nvidia.CudaLauncher
            self.get_current_device = lambda: 0
            self.set_current_device = lambda device: None
            self.get_current_stream = lambda device: 0
            self.get_device_capability = lambda device: (9, 0)

        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

    driver.set_active(StubDriver())
    return Recorder(library)
