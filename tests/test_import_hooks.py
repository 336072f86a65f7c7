"""Calls at the import of another module, and the networks' registration with timm, on modules made up for the test."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from affnet_kernels.import_hooks import when_imported

ROOT = Path(__file__).parents[1]
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
    spec = importlib.util.find_spec(NAME)
    assert spec is not None
    assert spec.loader is not None
    assert seen == [], "to look for a module is not to import it"
    module = importlib.import_module(NAME)
    assert seen == [1]
    assert sys.meta_path == before
    importlib.reload(module)
    spec.loader.exec_module(module)
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


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            """
import affnet_kernels.models
for _ in range(2):
    try:
        import timm
    except RuntimeError as error:
        assert "torchvision::nms" in str(error)
    else:
        raise AssertionError("timm's own error is the one that is seen")
import importlib
importlib.reload(affnet_kernels.models)
""",
        ),
        (
            "",
            """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import affnet_kernels.models
    assert caught == []
    import timm
(warning,) = caught
text = str(warning.message)
assert text.startswith("affnet_kernels: the networks are not in timm's registry: No module named 'timm.models'"), text
assert text.endswith("; update timm"), text
""",
        ),
    ],
    ids=["a timm that fails", "a timm without a registry"],
)
def test_a_bad_timm_leaves_the_networks_alone(tmp_path: Path, source: str, code: str) -> None:
    (tmp_path / "timm.py").write_text(source + "\n")
    code = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{code}\nassert affnet_kernels.models.affnet_et()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
