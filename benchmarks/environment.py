"""What a measurement depends on besides the code: device, versions, commit, clocks."""

from __future__ import annotations

import datetime
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch

import affnet_kernels

ROOT = Path(__file__).parents[1]


def facts(device_type: str) -> dict[str, str]:
    """The columns of `Result` that are the same for a whole run."""
    return {
        "device": device_name(device_type),
        "device_type": device_type,
        "torch": torch.__version__,
        "triton": _triton_version(),
        "package": affnet_kernels.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
    }


def device_name(device_type: str) -> str:
    if device_type == "cuda":
        return torch.cuda.get_device_name()
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    name = " ".join(found.group(1).split()) if found else platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({capability})"


def commit() -> str:
    """The sources' commit: of the git checkout, else from the file COMMIT, else "unknown"."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        pass
    try:
        return (ROOT / "COMMIT").read_text().strip()
    except OSError:
        return "unknown"


def _git(*arguments: str) -> str:
    command = ("git", "-c", "safe.directory=*", "-C", str(ROOT), *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return str(triton.__version__)


def smi(*fields: str) -> str:
    """nvidia-smi's answer to a query, comma-separated; empty where there is no such tool. It only ever asks."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def sm_clock() -> str:
    """The SM clock in MHz as it is now; empty without nvidia-smi."""
    return smi("clocks.sm")
