"""Files that are written completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_file(
    caller: str,
    path: str | os.PathLike[str],
    suffix: str,
) -> Iterator[Path]:
    """A path to write, in a new folder beside `path`; what stands there in the end takes the place of `path`.

    Files that are written beside it and share its stem go along. After an exception `path` is as it was.

    Raises:
        ValueError: `path` does not end with `suffix`.
        OSError: it cannot be written, which is found out before anything else.
    """
    target = Path(path).absolute()
    if target.suffix != suffix:
        raise ValueError(f"{caller}: expected a path that ends with {suffix}, got {path}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{caller}: expected a path in a folder that exists, got {path}")
    if target.is_dir() and suffix != ".mlpackage":
        raise IsADirectoryError(f"{caller}: expected a path to write a file to, got {path}, a folder")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.stem}-", dir=target.parent))
    except OSError as error:
        raise type(error)(f"{caller}: expected a path that can be written, got {path}: {error.strerror}") from error
    try:
        written = folder / target.name
        yield written
        for companion in folder.glob(f"{target.stem}.*"):
            if companion != written:
                os.replace(companion, target.parent / companion.name)
        if target.exists() and (target.is_dir() or written.is_dir()):  # which os.replace does not replace
            os.replace(target, folder / "earlier")
        os.replace(written, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
