"""Calls at the import of another module, made up for the test."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from affnet_kernels.import_hooks import when_imported

NAME = "made_up_library"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a module that can be imported; no trace of it is left."""
    before = list(sys.meta_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / f"{NAME}.py"
    path.write_text("value = 1\n")
    yield path
    sys.modules.pop(NAME, None)
    sys.meta_path[:] = before


@pytest.mark.usefixtures("library")
def test_the_call_comes_once_after_the_import() -> None:
    before = list(sys.meta_path)
    seen: list[int] = []
    when_imported(NAME, lambda: seen.append(sys.modules[NAME].value))
    assert importlib.util.find_spec(NAME) is not None
    assert seen == [], "to look for a module is not to import it"
    module = importlib.import_module(NAME)
    assert seen == [1]
    assert sys.meta_path == before
    importlib.reload(module)
    assert seen == [1]


@pytest.mark.usefixtures("library")
def test_the_call_comes_at_once_if_the_module_is_there() -> None:
    importlib.import_module(NAME)
    seen: list[str] = []
    when_imported(NAME, lambda: seen.append("called"))
    assert seen == ["called"]


@pytest.mark.usefixtures("library")
def test_every_call_comes() -> None:
    seen: list[str] = []
    for name in ("first", "second"):
        when_imported(NAME, lambda name=name: seen.append(name))
    importlib.import_module(NAME)
    assert sorted(seen) == ["first", "second"]


def test_an_import_that_fails_may_be_tried_again(library: Path) -> None:
    seen: list[str] = []
    when_imported(NAME, lambda: seen.append("called"))
    library.write_text("raise RuntimeError('broken')\n")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            importlib.import_module(NAME)
    assert seen == []
    library.write_text("mended = True\n")
    importlib.invalidate_caches()
    importlib.import_module(NAME)
    assert seen == ["called"]


@pytest.mark.usefixtures("library")
def test_a_forbidden_module_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, NAME, None)  # type: ignore[arg-type]
    seen: list[str] = []
    when_imported(NAME, lambda: seen.append("called"))
    with pytest.raises(ImportError):
        importlib.import_module(NAME)
    assert seen == []
