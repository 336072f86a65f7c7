"""Runs the launch tests under the versions of Triton that GPU machines have.

    python -m tests.triton_versions [version ...]

The wheels are kept, unpacked, in .triton-wheels/. Without a network the versions that are not there are skipped, and
the output says so; with `--require` that is an error.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WHEELS = ROOT / ".triton-wheels"
VERSIONS = ("3.6.0", "3.7.1", "newest")  # what torch 2.11 pins, what torch 2.12 pins, and the latest release


def fetch(
    version: str,  # or "newest"
) -> Path | str:
    """The folder of the unpacked wheel; or why there is none."""
    if version != "newest" and (WHEELS / version / "triton").is_dir():
        return WHEELS / version
    WHEELS.mkdir(exist_ok=True)
    requirement = "triton" if version == "newest" else f"triton=={version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    download = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(WHEELS), requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = sorted(WHEELS.glob("triton-*.whl"), key=lambda path: path.stat().st_mtime)
    if download.returncode != 0 or not wheels:
        return f"cannot download {requirement}: {(download.stderr.strip().splitlines() or ['no output'])[-1]}"
    return unpack(wheels[-1])


def unpack(
    wheel: Path,
) -> Path:
    """Replaces the wheel by its contents, in a folder named for its version."""
    folder = WHEELS / wheel.name.split("-")[1]
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            path = Path(archive.extract(entry, folder))
            if mode := entry.external_attr >> 16 & 0o777:
                path.chmod(mode)  # ptxas and its companions are executables
    wheel.unlink()
    return folder


def run(
    folder: Path,
) -> int:
    paths = [str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pytest", "--quiet", "-rP", "tests/test_triton_launch.py"]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    parser.add_argument("--require", action="store_true", help="fail where a version cannot be downloaded")
    arguments = parser.parse_args()
    failed = False
    tested: set[Path] = set()
    for version in arguments.versions:
        folder = fetch(version)
        if isinstance(folder, str):
            print(f"== Triton {version}: SKIPPED, {folder}", flush=True)
            failed |= arguments.require
        elif folder not in tested:
            tested.add(folder)
            print(f"== Triton {folder.name}", flush=True)
            failed |= run(folder) != 0
    if not tested:
        print("== no version of Triton was tested")
    return failed


if __name__ == "__main__":
    sys.exit(main())
