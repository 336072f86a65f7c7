"""What a measurement depends on besides the code: device, versions, commit, clocks."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNKNOWN = "unknown"


def facts(device_type: str) -> dict[str, str]:
    """The columns of `Result` that are the same for a whole run."""
    import torch

    import affnet_kernels

    return {
        "device": device_name(device_type),
        "device_type": device_type,
        "torch": torch.__version__,
        "triton": version("triton"),
        "package": affnet_kernels.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
    }


def device_name(device_type: str) -> str:
    import torch

    if device_type == "cuda":
        return torch.cuda.get_device_name()
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    name = " ".join(found.group(1).split()) if found else platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({capability})"


def commit(root: Path = ROOT) -> str:
    """The sources' commit: from git where `root` is a checkout, else from the file COMMIT, else "unknown".

    `make commit-file` writes COMMIT for a tree that travels without `.git`.
    """
    if (root / ".git").exists():  # a tree inside some other checkout must not take that one's commit
        command = ("git", "-c", "safe.directory=*", "-C", str(root), "describe", "--always", "--abbrev=12")
        try:
            done = subprocess.run(
                (*command, "--exclude=*", "--dirty=+changes"), capture_output=True, text=True, check=True, timeout=20
            )
            return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    try:
        return (root / "COMMIT").read_text().strip() or UNKNOWN
    except OSError:
        return UNKNOWN


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


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
