"""Files of a training run, which are written completely or not at all."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch


def save_file(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values to a file that takes the place of `path` when it is complete.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    os.replace(write_aside(state, path), path)
    synchronise(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file that takes the place of `path` when it is complete.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise type(error)(f"train: expected to write {path}, got: {error.strerror}") from error


def write_aside(state: dict[str, Any], path: Path) -> Path:
    """Write a file beside `path`, down to the disk, and return its path.

    Raises:
        OSError: it cannot be written, and is removed.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # RuntimeError: PyTorch's writer, after the file's own error
        aside.unlink(missing_ok=True)
        cause = _os_error(error)
        if cause is None:
            raise
        raise type(cause)(
            f"train: expected to write {path}, got: {cause.strerror or cause}; "
            f"the checkpoint before it is kept, from which --resume continues"
        ) from error
    return aside


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's error that an error comes from."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def read_file(path: Path) -> dict[str, Any]:
    """What `save_file` wrote, on the CPU. Nothing in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not compare the checksums
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
        reason = f"a wrong checksum in {damaged}"
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and pickle raise whatever a damaged file leads them to
        reason = str(error) or type(error).__name__
    raise ValueError(f"train: expected a complete checkpoint, got {path}, which is damaged: {reason}")


def synchronise(folder: Path) -> None:
    """Bring the names of a folder's files to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
