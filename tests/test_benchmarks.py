"""The benchmarks: what they measure is right, what they write is readable, what goes wrong is said."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks import (
    compare,
    evidence,
    growth,
    inputs,
    memory,
    providers,
    report,
    results,
    run,
    timing,
)
from benchmarks.cases import HEADLINE, SHIPPED, SUITES, Case
from benchmarks.gpu_run import claims, steps
from benchmarks.gpu_run import driver as gpu
from benchmarks.measure import Meter
from benchmarks.tables import Rows, geometric_mean, headlines

TINY = Case("headline", 2, 16, 8, 8)


@pytest.fixture
def meter() -> Meter:
    return Meter("cpu", seconds=0.01, compile_seconds=0)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tiny cases with every provider, and what it wrote."""
    folder = tmp_path_factory.mktemp("run")
    assert cli.main(["run", "quick", "--out", str(folder), "--seconds", "0.01"]) == 0
    return folder


def test_the_cases_are_the_shipped_shapes() -> None:
    assert {(channels, size) for channels, size, _ in HEADLINE} >= set(SHIPPED)
    assert {case.tokens for case in SUITES["sweep"]} >= {8**2, 16**2, 32**2, 64**2, 128**2}
    assert all(case.channels % case.blocks == 0 for cases in SUITES.values() for case in cases)


def test_the_input_is_a_photograph() -> None:
    pytest.importorskip("sklearn")
    case = Case("headline", 4, 64, 32, 32)
    x = inputs.feature_map(case)
    assert inputs.source(case) == "photographs"
    assert torch.equal(x, inputs.feature_map(case))
    # Neighbouring pixels of a photograph are alike, those of noise are not; its features are normalised.
    assert (x[..., 1:] * x[..., :-1]).mean() > 0.3
    assert x.std().item() == pytest.approx(1, rel=0.01)


def test_without_photographs_the_rows_say_random(monkeypatch: pytest.MonkeyPatch, meter: Meter) -> None:
    monkeypatch.setattr(inputs, "photographs", lambda: None)
    (row,) = meter.run(TINY, ("eager",))
    assert row.input == "random"


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_provider_is_right_or_says_why(meter: Meter, direction: str, dtype: str) -> None:
    rows = list(meter.run(TINY._replace(direction=direction, dtype=dtype), tuple(providers.PROVIDERS)))
    assert [row.status for row in rows if row.provider in ("eager", "clone", *providers.OTHERS)] == ["OK"] * 5
    for row in rows:
        assert row.status in ("OK", "SKIP"), row
        assert row.reason if row.status == "SKIP" else row.p20_us <= row.p50_us <= row.p80_us


def test_a_wrong_answer_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    eager = providers.PROVIDERS["eager"]
    wrong = eager._replace(name="token-mlp", function=lambda case, device: lambda *t: providers.eager(*t) * (1 + 1e-4))
    monkeypatch.setitem(providers.PROVIDERS, "token-mlp", wrong)
    assert cli.main(["run", "quick", "--out", str(tmp_path), "--seconds", "0.01", "--providers", "token-mlp"]) == 1
    rows = [row for row in results.read([tmp_path / "results.csv"]) if row.provider == "token-mlp"]
    assert {row.status for row in rows} == {"FAIL"}
    assert all(math.isnan(row.p50_us) and "not timed" in row.reason for row in rows)


def test_a_provider_that_crashes_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, meter: Meter) -> None:
    def crash(*tensors: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of luck")

    broken = providers.PROVIDERS["attention"]._replace(function=lambda case, device: crash)
    monkeypatch.setitem(providers.PROVIDERS, "attention", broken)
    by_name = {row.provider: row for row in meter.run(TINY, ("attention", "eager", "clone"))}
    assert (by_name["attention"].status, by_name["attention"].reason) == ("FAIL", "RuntimeError: out of luck")
    assert by_name["eager"].status == by_name["clone"].status == "OK"


def test_interpreted_triton_is_not_timed(monkeypatch: pytest.MonkeyPatch, meter: Meter) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (row,) = meter.run(TINY, ("triton",))
    assert row.status == "SKIP"


def test_the_header_is_stable() -> None:
    assert results.FIELDS[:5] == ("device", "device_type", "torch", "triton", "package")
    assert results.FIELDS[-3:] == ("clocks", "status", "reason")
    assert len(results.FIELDS) == 38


def test_rows_survive_the_file_and_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    rows = [results.blank(case="a", p50_us=1.5, reason='said "no", twice'), results.blank(case="b", launches=3)]
    with results.Writer(path) as writer:
        for row in rows:
            writer.write(row)
    path.write_text(path.read_text() + "NVIDIA,cuda,2.1")
    read = results.read([path])
    assert [str(row) for row in read] == [str(row) for row in rows]  # as text: NaN is not equal to itself


def test_a_foreign_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"^read: expected the columns device, .* got a, b$"):
        results.read([tmp_path / "x.csv"])


def test_a_missing_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "report: expected CSV files of results, got none in" in capsys.readouterr().err


def test_report(measured: Path) -> None:
    written = report.write([measured], measured)
    text = (measured / "report.md").read_text()
    assert "Fused against eager" in text or "No fused backend ran" in text
    assert "self-attention" in text
    assert "input: " in text
    assert written[0].name == "report.md"


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with results.Writer(tmp_path / "results.csv") as writer:
        for row in _sweep():
            writer.write(row)
    written = report.write([tmp_path], tmp_path / "to")
    assert [path.name for path in written] == ["report.md", "complexity.png", "speedup.png", "roofline.png"]
    assert all(path.stat().st_size > 10_000 for path in written[1:])


def _sweep() -> list[results.Result]:
    rows = []
    for size in (16, 32, 64, 128):
        for provider, power in (("eager", 1.1), ("cpu", 1.1), ("attention", 2.0)):
            time_us = 0.01 * (size * size) ** power
            row = results.blank(suite="sweep", provider=provider, case=f"64@{size}x{size}", batch=1, channels=64)
            row = replace(row, height=size, width=size, dtype="float32", direction="forward", status="OK")
            row = replace(row, p20_us=time_us, p50_us=1.1 * time_us, gb_per_s=10.0, ratio_p50=1.0)
            rows.append(row)
    headline = [replace(row, suite="headline", ratio_p20=3.0, ratio_p50=4.0, ratio_p80=5.0) for row in rows]
    return rows + [row for row in headline if row.provider == "cpu"]


def test_the_exponents_are_fitted() -> None:
    fits = {fit.provider: fit for fit in growth.exponents(_sweep())}
    assert fits["attention"].exponent == pytest.approx(2.0)
    assert fits["eager"].exponent == pytest.approx(1.1)
    assert (fits["eager"].smallest, fits["eager"].largest, fits["eager"].points) == (1024, 16384, 3)


def test_a_quadratic_mixer_is_skipped_before_it_takes_minutes(meter: Meter) -> None:
    small = Case("sweep", 1, 64, 64, 64)
    meter.remember(small, "attention", 0.5e6)
    assert meter.too_slow(small._replace(height=128, width=128), "attention").startswith("a call would take up to 8 s")
    assert not meter.too_slow(small, "attention")


def test_quantiles() -> None:
    assert timing.quantiles([5, 1, 2, 4, 3]) == pytest.approx((1.8, 3, 4.2))


def test_pairs_alternate_and_restore_the_threads() -> None:
    seen: list[tuple[str, int]] = []
    before = torch.get_num_threads()
    samples = timing.paired(
        lambda: seen.append(("a", torch.get_num_threads())),
        lambda: seen.append(("b", torch.get_num_threads())),
        0,
        (2, 1),
    )
    assert seen == [("a", 2), ("b", 1)] * 5
    assert len(samples.ours) == len(samples.baseline) == len(samples.ratios) == 3
    assert torch.get_num_threads() == before


def test_peak_memory() -> None:
    x = torch.ones(1 << 20)

    def two_at_once() -> torch.Tensor:
        a = x + 1
        b = a + 1
        del a
        return b * 1  # b and its product; a is gone

    assert memory.peak_bytes(two_at_once, "cpu") == pytest.approx(2 * 4 << 20, abs=1 << 12)
    assert memory.peak_bytes(lambda: x.sum(), "cpu") < 1 << 12


def test_geometric_mean_and_headlines() -> None:
    assert geometric_mean([2, 8]) == pytest.approx(4)
    assert "fused (cpu), forward: 4.00x eager, geometric mean over 4 cases" in headlines(Rows(_sweep()))[0]


def test_the_time_limit_leaves_a_row_for_every_case(tmp_path: Path, meter: Meter) -> None:
    rows = run.run(SUITES["quick"], tmp_path / "r.csv", meter, ["eager"], deadline=0)
    assert [row.reason for row in rows if row.provider == "eager"] == ["the time of this run is spent"] * 4
    assert [str(row) for row in results.read([tmp_path / "r.csv"])] != []


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in (*SUITES, *providers.PROVIDERS))


def _rows(p50_us: float = 10.0, **values: object) -> list[results.Result]:
    """What a GPU's run of one shape might have written."""
    common: dict[str, object] = {
        **{
            "device": "NVIDIA H200",
            "device_type": "cuda",
            "commit": "0123456789ab",
            "suite": "shipped",
            "status": "OK",
        },
        **{"case": "128@32x32", "batch": 64, "channels": 128, "height": 32, "width": 32, "dtype": "bfloat16"},
        **{"direction": "forward", "threads": 1, "error": 1e-3, "protocol": "graph", "status": "OK"},
    }

    def row(provider: str, microseconds: float, gb_per_s: float) -> results.Result:
        spread = {"p20_us": 0.98 * microseconds, "p50_us": microseconds, "p80_us": 1.02 * microseconds}
        return results.blank(**(common | {"provider": provider, "gb_per_s": gb_per_s} | spread | values))

    return [row("eager", 200.0, 200.0), row("clone", 8.0, 4000.0), row("triton", p50_us, 40000.0 / p50_us)]


def _write(path: Path, rows: list[results.Result]) -> Path:
    with results.Writer(path) as writer:
        for row in rows:
            writer.write(row)
    return path


def test_claims_are_judged(tmp_path: Path) -> None:
    text = report.text(Rows(_rows(p50_us=10.0)), [])
    assert re.search(r"bfloat16, forward: speed against eager +\| +>= 10x \| +20x \| +met \|", text)
    assert re.search(r"bfloat16, forward: of clone's bandwidth +\| +>= 25% \| +100% \| +met \|", text)
    text = report.text(Rows(_rows(p50_us=50.0)), [])
    assert re.search(r"bfloat16, forward: speed against eager +\| +>= 10x \| +4x \| +NOT MET \|", text)
    assert re.search(r"bfloat16, forward: of clone's bandwidth +\| +>= 25% \| +20% \| +NOT MET \|", text)
    assert "NOT A GPU RUN" not in text


def test_a_stand_in_meets_no_claim() -> None:
    text = report.text(Rows(_rows(device_type="stand-in")), [])
    assert text.startswith("# NOT A GPU RUN\n\n**THIS IS NOT A GPU RUN.**")
    assert "| met |" not in text.replace("  ", "")
    assert text.count("not measured on a GPU") == len(claims.CLAIMS)


def test_compare_marks_what_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = _write(tmp_path / "a.csv", _rows(10.0)), _write(tmp_path / "b.csv", _rows(8.0))
    assert cli.main(["compare", str(a), str(b)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"fused \(triton\) +\| +10.0 \| +8.0 \| +0.80 \| 0.77-0.83 \| faster \|", said)
    assert "1 of 3 moved by more than the noise." in said
    assert compare.verdict(0.9, 0.95, 1.01) == compare.verdict(1.005, 1.01, 1.02) == ""
    assert compare.verdict(1.1, 1.2, 1.3) == "slower"


def test_compare_of_strangers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = _write(tmp_path / "a.csv", _rows()), _write(tmp_path / "b.csv", _rows(suite="other"))
    assert cli.main(["compare", str(a), str(b)]) == 2
    assert "compare: expected files with measurements in common, got none" in capsys.readouterr().err


def test_evidence_is_appended_by_commit(tmp_path: Path) -> None:
    first = _write(tmp_path / "first.csv", _rows())
    path = evidence.keep(first, tmp_path / "kept")
    assert path.name == "nvidia-h200.csv"
    with pytest.raises(ValueError, match=r"^keep: expected a commit that is not in nvidia-h200.csv, got "):
        evidence.keep(first, tmp_path / "kept")
    evidence.keep(_write(tmp_path / "second.csv", _rows(5.0, commit="ba9876543210")), tmp_path / "kept")
    assert [row.commit for row in results.read([path])] == 3 * ["0123456789ab"] + 3 * ["ba9876543210"]
    said = evidence.block(tmp_path / "kept")
    assert "40.00x" in said
    assert "20.00x" not in said
    assert "NVIDIA H200, commit ba9876543210" in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"device_type": "stand-in"}, "expected the results of a CUDA device, got ['stand-in']"),
        ({"commit": "0123+changes"}, "expected the results of a commit, got ['0123+changes']"),
    ],
)
def test_what_is_no_evidence(tmp_path: Path, values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        evidence.keep(_write(tmp_path / "r.csv", _rows(**values)), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_the_readme_table_is_generated(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{evidence.BEGIN}\nold\n{evidence.END}\nafter\n")
    assert evidence.update_readme(check=True, readme=readme, folder=tmp_path) == 1
    assert evidence.update_readme(readme=readme, folder=tmp_path) == 0
    assert readme.read_text() == f"before\n{evidence.BEGIN}\n{evidence.NONE}\n{evidence.END}\nafter\n"
    _write(tmp_path / "nvidia-h200.csv", _rows())
    assert evidence.update_readme(check=True, readme=readme, folder=tmp_path) == 1
    assert evidence.update_readme(readme=readme, folder=tmp_path) == 0
    assert evidence.update_readme(check=True, readme=readme, folder=tmp_path) == 0
    assert "128@32x32, B=64, bfloat16, forward" in readme.read_text()


def test_readme_agrees_with_the_evidence() -> None:
    if evidence.BEGIN not in (evidence.ROOT / "README.md").read_text():
        pytest.skip("README has no table of GPU results")
    assert evidence.update_readme(check=True) == 0


def _python(name: str, seconds: float, code: str) -> gpu.Step:
    return gpu.Step(name, seconds, (sys.executable, "-c", code))


def test_no_step_stops_the_later_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = (
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    )
    todo = [
        _python("good", 20, "print('all well')"),
        _python("failing", 20, "print('about to fail'); raise SystemExit(3)"),
        _python("crashing", 20, "import os; print('crash', flush=True); os.abort()"),
        _python("hanging", 2, child),
        _python("absent", 20, "print('no such tool'); raise SystemExit(77)"),
        _python("last", 20, "print('still here')"),
    ]
    start = time.monotonic()
    assert gpu.run(todo, tmp_path, write_report=False) == 1
    assert time.monotonic() - start < 40
    rows = {row.case: row for row in results.read([tmp_path / "results.csv"])}
    assert [row.status for row in rows.values()] == ["OK", "FAIL", "FAIL", "FAIL", "SKIP", "OK"]
    assert rows["failing"].reason == "exit status 3: about to fail"
    assert rows["crashing"].reason == "exit status -6: crash"
    assert rows["hanging"].reason.startswith("stopped at its limit of 2 s")
    assert rows["absent"].reason == "no such tool"
    grandchild = int(rows["hanging"].reason.split()[-1])
    assert not _alive(grandchild)
    assert capsys.readouterr().out.splitlines()[-1] == "FAILED: failing, crashing, hanging"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def test_steps_beyond_the_time_are_skipped(tmp_path: Path) -> None:
    todo = [_python("long", 60, "import time; time.sleep(60)"), _python("late", 60, "print('never')")]
    assert gpu.run(todo, tmp_path, total=2, write_report=False) == 1
    late = results.read([tmp_path / "results.csv"])[-1]
    assert (late.case, late.status, late.reason) == ("late", "SKIP", "no time was left")


def test_a_run_killed_half_way_leaves_what_it_had(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu_run import driver as gpu\n"
        "p = lambda name, code: gpu.Step(name, 60, (sys.executable, '-c', code))\n"
        "todo = [p('first', 'print(1)'), p('second', 'import time; print(2, flush=True); time.sleep(60)')]\n"
        "gpu.run(todo, Path(sys.argv[1]))\n"
    )
    run_ = subprocess.Popen((sys.executable, "-c", code, str(tmp_path)), stdout=subprocess.PIPE, text=True)
    assert run_.stdout is not None
    while "second" not in run_.stdout.readline():
        assert run_.poll() is None
    run_.terminate()
    run_.wait(timeout=30)
    rows = results.read([tmp_path / "results.csv"])
    assert [(row.case, row.status) for row in rows] == [("first", "OK")]
    assert "first" in (tmp_path / "report.md").read_text()


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real steps with a CPU in the part of the GPU, but for the tests: they are what is running.

    Only the first gets a process of its own: to start one takes longer than most steps.
    """
    folder = tmp_path_factory.mktemp("gpu")
    first, *others = [step for step in gpu.steps(folder, stand_in=True) if "tests" not in step.name]
    assert gpu.run([first], folder, write_report=False) == 0
    threads = torch.get_num_threads()
    codes = [steps.main(step.command[3:]) for step in others]
    torch.set_num_threads(threads)
    assert codes == [gpu.SKIPPED, 0, 0, 0, gpu.SKIPPED, gpu.SKIPPED]  # build, inverse transform, launches, suite, ...
    return folder


def test_a_stand_in_runs_every_step(stand_in: Path) -> None:
    rows = results.read([stand_in / "results.csv"])
    assert [(row.case, row.status) for row in rows if row.suite == "step"] == [("(a) environment", "OK")]
    assert {"inverse-transform", "launches", "quick"} <= {row.suite for row in rows}
    assert {row.device_type for row in rows} == {"stand-in"}
    assert {"copy", "matmul bfloat16", "matmul tf32"} <= {row.provider for row in rows if row.suite == "machine"}
    assert all(row.launches > 3 for row in rows if row.suite == "launches" and row.provider == "eager")
    assert {path.name for path in stand_in.iterdir()} == {"results.csv", "log"}


def test_a_stranger_sees_that_a_stand_in_is_no_gpu_run(stand_in: Path, tmp_path: Path) -> None:
    written = report.write([stand_in], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.splitlines()[0] == "# NOT A GPU RUN"
    assert "| met |" not in re.sub(" +", " ", text)
    assert len(written) <= 6


def test_a_machine_without_a_gpu_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = (sys.executable, "-m", "benchmarks.gpu_run.steps", "environment", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("make gpu: expected a CUDA device, got none")
