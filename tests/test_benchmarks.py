"""The benchmarks measure right answers only, write what can be read back, and say what went wrong."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks import (
    cases,
    compare,
    environment,
    evidence,
    growth,
    inputs,
    memory,
    mixers,
    providers,
    report,
    results,
    run,
    timing,
)
from benchmarks.cases import HEADLINE, SHIPPED, SUITES, Case
from benchmarks.gpu_run import checks, claims, context, driver, plan, steps
from benchmarks.measure import Bench, Meter
from benchmarks.tables import Rows, cliffs_table, headlines, relative_table

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
    assert {(channels, height) for _, channels, height, _ in HEADLINE} >= set(SHIPPED)
    assert {case.tokens for case in SUITES["sweep"].cases} >= {8**2, 16**2, 32**2, 64**2, 128**2}
    assert {case.activation for name in ("headline", "shipped") for case in SUITES[name].cases} == {"silu"}


def test_suites_are_consistent() -> None:
    for name, suite in SUITES.items():
        assert {case.suite for case in suite.cases} == {suite.name} == {name}
        assert len({case._replace(against=cases.EAGER) for case in suite.cases}) == len(suite.cases)
        assert all(case.channels % case.blocks == 0 for case in suite.cases)
        assert set(suite.providers) <= set(providers.PROVIDERS)
        assert any(suite.device in providers.PROVIDERS[provider].devices for provider in suite.providers)
    assert all(set(step.arguments) <= set(SUITES) for step in plan.PLAN)


def test_the_cliffs_are_the_sizes_that_were_slow() -> None:
    sizes = {(case.height, case.width) for case in SUITES["cliffs"].cases}
    thin = {(64, 1), (256, 1), (4096, 1), (1, 511), (1, 4096), (2, 1024), (3, 777)}
    assert sizes >= thin | {(n, n) for n in (31, 53, 61, 257)} | {(97, 101), (90, 180), (721, 1440)}
    assert {case.channels // case.blocks for case in SUITES["cliffs"].cases} >= {128, 256}


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
    here = tuple(
        name
        for name, provider in providers.PROVIDERS.items()
        if "cpu" in provider.devices and provider.kind != "network"
    )
    rows = list(meter.run(TINY._replace(direction=direction, dtype=dtype), here))
    assert [row.status for row in rows if row.provider in ("eager", "clone", *cases.MIXERS)] == ["OK"] * 5
    for row in rows:
        assert row.status in ("OK", "SKIP"), row
        assert row.reason if row.status == "SKIP" else row.p20_us <= row.p50_us <= row.p80_us


def test_a_wrong_answer_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    eager = providers.PROVIDERS["eager"]
    wrong = eager._replace(
        name="token-mlp", build=lambda case, device: lambda *t: providers.eager(case)(*t) * (1 + 1e-4)
    )
    monkeypatch.setitem(providers.PROVIDERS, "token-mlp", wrong)
    assert cli.main(["run", "quick", "--out", str(tmp_path), "--seconds", "0.01", "--providers", "token-mlp"]) == 1
    rows = [row for row in results.read([tmp_path / "results.csv"]) if row.provider == "token-mlp"]
    assert {row.status for row in rows} == {"FAIL"}
    assert all(math.isnan(row.p50_us) and "not timed" in row.reason for row in rows)


def test_a_provider_that_crashes_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, meter: Meter) -> None:
    def crash(*tensors: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of luck")

    broken = providers.PROVIDERS["attention"]._replace(build=lambda case, device: crash)
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
    assert results.FIELDS[-4:] == ("clocks", "status", "reason", "activation")
    assert len(results.FIELDS) == 39


def test_files_from_before_the_activation_column_are_read_and_extended(tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    new = results.blank(case="a", p50_us=1.5, activation="relu")
    _write(path, [new])
    lines = path.read_text().splitlines()
    path.write_text("".join(line.rsplit(",", 1)[0] + "\n" for line in lines))
    assert path.read_text().splitlines()[0].endswith(",reason")
    assert [str(row) for row in results.read([path])] == [str(new)]
    _write(path, [results.blank(case="b", activation="silu")])
    assert [(row.case, row.activation) for row in results.read([path])] == [("a", "relu"), ("b", "silu")]


def test_rows_survive_the_file_and_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    rows = [results.blank(case="a", p50_us=1.5, reason='said "no", twice'), results.blank(case="b", launches=3)]
    with results.Writer(path) as writer:
        for row in rows:
            writer.write(row)
    path.write_text(path.read_text() + "NVIDIA,cuda,2.1")
    read = results.read([path])
    assert [str(row) for row in read] == [str(row) for row in rows]  # as text: NaN is not equal to itself
    _write(path, [results.blank(case="c")])  # a later step appends to what the killed one has left
    assert [row.case for row in results.read([path])] == ["a", "b", "c"]


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
    assert [path.name for path in written] == [
        "report.md",
        "complexity.png",
        "speedup.png",
        "roofline.png",
        "cliffs.png",
    ]
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
    awkward = [replace(row, suite="cliffs", provider="auto", reason="runs cpu") for row in headline]
    return rows + [row for row in headline + awkward if row.provider in ("cpu", "auto")]


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


def test_headlines() -> None:
    assert "fused (cpu), forward: 4.00x eager, geometric mean over 4 cases" in headlines(Rows(_sweep()))[0]


def test_the_time_limit_leaves_a_row_for_every_case(tmp_path: Path, meter: Meter) -> None:
    rows = run.run(SUITES["quick"].cases, tmp_path / "r.csv", meter, ["eager"], deadline=0)
    assert [row.reason for row in rows if row.provider == "eager"] == ["the time of this run is spent"] * 4
    assert [str(row) for row in results.read([tmp_path / "r.csv"])] != []


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in (*SUITES, *providers.PROVIDERS))


def _rows(p50_us: float = 10.0, provider_of_fused: str = "triton", **values: object) -> list[results.Result]:
    """What a GPU's run of one shape might have written."""
    common: dict[str, object] = {
        **{
            "device": "NVIDIA H200",
            "device_type": "cuda",
            "torch": "2.0",
            "commit": "0123456789ab",
            "suite": "shipped",
            "status": "OK",
        },
        **{"case": "128@32x32", "batch": 64, "channels": 128, "height": 32, "width": 32, "dtype": "bfloat16"},
        **{"direction": "forward", "threads": 1, "error": 1e-3, "protocol": "graph", "activation": "silu"},
    }

    def row(provider: str, microseconds: float, gb_per_s: float) -> results.Result:
        spread = {"p20_us": 0.98 * microseconds, "p50_us": microseconds, "p80_us": 1.02 * microseconds}
        ratio = {"baseline": "eager", "ratio_p50": 200 / microseconds}
        return results.blank(**(common | {"provider": provider, "gb_per_s": gb_per_s} | spread | ratio | values))

    fused = row(provider_of_fused, p50_us, 40000.0 / p50_us)
    return [row("eager", 200.0, 200.0), row("clone", 8.0, 4000.0), fused]


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


def test_claims_of_one_launch_are_judged() -> None:
    named = re.escape("cuda, 128@32x32, B=64, bfloat16, forward")
    for microseconds, first, second, eager in ((20.0, "met", "NOT MET", "NOT MET"), (12.5, "met", "met", "met")):
        rows = _rows(p50_us=microseconds, provider_of_fused="cuda")
        rows += [replace(row, p50_us=25.0, provider="planned", suite="paths-cuda") for row in rows[2:]]
        text = report.text(Rows(rows), [])
        share = round(40000 / microseconds / 40)
        assert re.search(rf"{named}: of clone's bandwidth +\| +>= 45% \| +{share}% \| +{first} \|", text)
        assert re.search(rf"{named}: of clone's bandwidth +\| +>= 65% \| +{share}% \| +{second} \|", text)
        assert re.search(rf"{named}: speed against eager +\| +>= 15x \| +\S+x \| +{eager} \|", text)
        assert re.search(rf"{named}: speed against cuFFT +\| +>= 1x \| +{25 / microseconds:.3g}x \| +met \|", text)


def test_the_claim_of_one_launch_leaves_out_large_maps() -> None:
    """A map of 64 x 64 is planned, in four launches."""
    rows = [replace(row, suite="launches", provider="cuda", launches=1) for row in _rows()[2:]]
    rows.append(replace(rows[0], case="64@64x64", channels=64, height=64, width=64, launches=4))
    text = report.text(Rows(rows), [])
    assert re.search(r"cuda: launches of a forward pass, up to 32x32 +\| +<= 1 \| +1 \| +met \|", text)
    rows.append(replace(rows[0], case="104@16x16", channels=104, height=16, width=16, launches=2))
    assert re.search(r"up to 32x32 +\| +<= 1 \| +2 \| +NOT MET \|", report.text(Rows(rows), []))


def test_no_launch_is_no_evidence() -> None:
    """A profiler that recorded nothing must not meet the claim of at most one launch."""
    for launches, verdict in ((0, "not measured on a GPU"), (1, "met"), (2, "NOT MET")):
        rows = [replace(row, suite="launches", launches=launches) for row in _rows() if row.provider == "triton"]
        text = report.text(Rows(rows), [])
        assert re.search(rf"launches of a forward pass +\| +<= 1 \| +\S+ \| +{verdict} \|", text)


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
    said = evidence.text(evidence.BLOCKS[1], tmp_path / "kept")
    assert "40.00x" in said
    assert "20.00x" not in said
    assert said.startswith("NVIDIA H200, torch 2.0, ")
    assert ", commit ba9876543210, " in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"device_type": "stand-in"}, "expected the results of a CPU or a CUDA device, got ['stand-in']"),
        ({"commit": "0123+changes"}, "expected the results of a commit, got ['0123+changes']"),
    ],
)
def test_what_is_no_evidence(tmp_path: Path, values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        evidence.keep(_write(tmp_path / "r.csv", _rows(**values)), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_cpu_results_are_evidence_too(tmp_path: Path) -> None:
    here = {"device": "A Processor (AVX2)", "device_type": "cpu", "suite": "headline", "dtype": "float32"}
    path = evidence.keep(_write(tmp_path / "r.csv", _rows(provider_of_fused="cpu", **here)), tmp_path / "kept")
    assert path.name == "a-processor-avx2.csv"
    said = evidence.text(evidence.BLOCKS[0], tmp_path / "kept")
    assert said.startswith("A Processor (AVX2), 1 thread, torch 2.0, ")
    assert "commit 0123456789ab" in said
    assert re.search(r"128@32x32, B=64, float32, cpu +\| +200 \| +10.0 \| +20.00x \|", said)
    assert evidence.text(evidence.BLOCKS[1], tmp_path / "kept") == evidence.BLOCKS[1].nothing


def test_the_readme_tables_are_generated(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    cpu, gpu = evidence.BLOCKS
    readme.write_text(f"before\n{cpu.begin}\nold\n{cpu.end}\n{gpu.begin}\nold\n{gpu.end}\nafter\n")
    assert evidence.update_readme(check=True, readme=readme, folder=tmp_path) == 1
    assert evidence.update_readme(readme=readme, folder=tmp_path) == 0
    nothing = f"{cpu.begin}\n{cpu.nothing}\n{cpu.end}\n{gpu.begin}\n{gpu.nothing}\n{gpu.end}"
    assert readme.read_text() == f"before\n{nothing}\nafter\n"
    _write(tmp_path / "nvidia-h200.csv", _rows())
    assert evidence.update_readme(check=True, readme=readme, folder=tmp_path) == 1
    assert evidence.update_readme(readme=readme, folder=tmp_path) == 0
    assert evidence.update_readme(check=True, readme=readme, folder=tmp_path) == 0
    assert "128@32x32, B=64, bfloat16, triton" in readme.read_text()


def test_readme_agrees_with_the_committed_results() -> None:
    assert evidence.update_readme(check=True) == 0


def _git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ("git", *who, "-C", str(folder), *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_travels_in_a_file(tmp_path: Path) -> None:
    """`make commit-file` writes what git says; a tree without git reads it, even inside another checkout."""
    tree, copy = tmp_path / "tree", tmp_path / "tree" / "copy"
    tree.mkdir()
    shutil.copy(environment.ROOT / "Makefile", tree)
    _git(tree, "init", "-q")
    _git(tree, "add", "Makefile")
    _git(tree, "commit", "-qm", "x")
    head = _git(tree, "rev-parse", "--short=12", "HEAD")
    for expected in (head, f"{head}+changes"):
        subprocess.run(("make", "-s", "-C", str(tree), "commit-file"), check=True)
        assert (tree / "COMMIT").read_text().strip() == environment.commit(tree) == expected
        copy.mkdir(exist_ok=True)
        assert environment.commit(copy) == "unknown"
        shutil.copy(tree / "COMMIT", copy)
        assert environment.commit(copy) == expected
        shutil.rmtree(copy)
        (tree / "Makefile").write_text((tree / "Makefile").read_text() + "\n")


def test_the_commit_file_is_not_ignored() -> None:
    if not (environment.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ("git", "-c", "safe.directory=*", "-C", str(environment.ROOT), "check-ignore", "-q", "COMMIT")
    assert subprocess.run(command, check=False).returncode == 1


def test_a_run_without_a_known_commit_says_so_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "commit", lambda: "unknown")
    monkeypatch.setattr(driver, "run", lambda *arguments: 0)
    assert cli.main(["gpu", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("neither git nor a file COMMIT says which commit this is")


def test_a_python_without_torch_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(driver, "run", lambda *arguments: pytest.fail("a step was run"))
    assert cli.main(["gpu", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"make gpu: expected {sys.executable} to have torch, got none; ")


def _python(name: str, seconds: float, code: str) -> driver.Job:
    return driver.Job(name, seconds, (sys.executable, "-c", code))


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
    assert driver.run(todo, tmp_path, write_report=False) == 1
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
    assert driver.run(todo, tmp_path, total=2, write_report=False) == 1
    late = results.read([tmp_path / "results.csv"])[-1]
    assert (late.case, late.status, late.reason) == ("late", "SKIP", "no time was left")


def test_a_run_killed_half_way_leaves_what_it_had(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu_run import driver\n"
        "p = lambda name, code: driver.Job(name, 60, (sys.executable, '-c', code))\n"
        "todo = [p('first', 'print(1)'), p('second', 'import time; print(2, flush=True); time.sleep(60)')]\n"
        "driver.run(todo, Path(sys.argv[1]))\n"
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
    """The real steps with a CPU in the part of the GPU, but for the tests: they are what is running. Nothing compiles.

    Only the first gets a process of its own: to start one takes longer than most steps.
    """
    folder = tmp_path_factory.mktemp("gpu")
    first, *others = [
        job for job in driver.jobs(folder, stand_in=True) if job.name not in ("tests", "compiled", "stub-driver")
    ]
    assert driver.run([first], folder, write_report=False) == 0
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "Meter", lambda *values, **options: Meter(*values, **options | {"compile_seconds": 0}))
        codes = {job.name: steps.main(job.command[3:]) for job in others}
    torch.set_num_threads(threads)
    assert codes.pop("contact-built") == driver.SKIPPED
    assert codes == dict.fromkeys(codes, 0)
    return folder


def test_a_stand_in_runs_every_step(stand_in: Path) -> None:
    rows = results.read([stand_in / "results.csv"])
    assert [(row.case, row.status) for row in rows if row.suite == "step"] == [("device", "OK")]
    suites = {"inverse-transform", "launches", "shipped", "rivals", "sweep-cuda", "networks-cuda"}
    assert suites <= {row.suite for row in rows}
    assert {row.device_type for row in rows} == {"stand-in"}
    assert {"copy", "matmul bfloat16", "matmul tf32"} <= {row.provider for row in rows if row.suite == "machine"}
    assert all(row.launches > 3 for row in rows if row.suite == "launches" and row.provider == "eager")
    met = {(row.provider, row.status) for row in rows if row.suite == "contact"}
    assert ("triton", "OK") in met  # interpreted, against float64
    assert "FAIL" not in {status for _, status in met}


def test_the_plan_fits_into_nine_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(step.seconds for step in plan.PLAN) < plan.TOTAL <= 540
    assert [step.name for step in plan.PLAN][:2] == ["device", "contact"]  # before anything long
    assert cli.main(["gpu", "--plan"]) == 0
    said = capsys.readouterr().out
    assert all(step.name in said and step.shows in said for step in plan.PLAN)


def _steps_run(folder: Path) -> context.Run:
    return context.Run(folder, stand_in=True, arguments=["0/1"])


def test_one_case_that_does_not_compile_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = steps.call

    def call(provider: str, case: Case, device: str) -> providers.Call:
        if case.dtype == "float32":
            raise RuntimeError("no such instruction\nand a long story")
        return real("eager", case, device)

    monkeypatch.setattr(steps, "call", call)
    steps.warm(_steps_run(tmp_path))
    rows = [row for row in results.read([tmp_path / "results.csv"]) if row.suite == "warm"]
    assert [(row.dtype, row.status) for row in rows] == [("float32", "FAIL"), ("float16", "OK")]
    assert rows[0].reason == "RuntimeError: no such instruction and a long story"


@pytest.mark.parametrize("statuses", [["FAIL", "OK"], ["FAIL", "FAIL"], ["SKIP"]])
def test_a_build_that_compiled_nothing_or_not_all_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statuses: list[str]
) -> None:
    this = _steps_run(tmp_path)
    for status in statuses:
        this.write(TINY._replace(suite="warm"), provider="triton", status=status, reason="no such instruction")
    monkeypatch.setattr(steps.subprocess, "Popen", lambda *a, **k: subprocess.CompletedProcess(a, 0))
    monkeypatch.setattr(subprocess.CompletedProcess, "wait", lambda self: 0, raising=False)
    with pytest.raises(RuntimeError, match=f"kernels of {statuses.count('OK')} of {len(statuses)} cases compiled"):
        steps.build(this)


def test_a_build_that_fails_is_no_pure_python_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """setup.py falls back to a package without the extension unless it is told not to."""
    this = _steps_run(tmp_path)
    this.stand_in = False
    seen: list[dict[str, str]] = []

    class Process:
        def __init__(self, command: tuple[str, ...], **options: object) -> None:
            if "setup.py" in command:
                seen.append(options["env"])  # type: ignore[arg-type]

        def wait(self) -> int:
            return 1

    monkeypatch.setattr(steps.subprocess, "Popen", Process)
    monkeypatch.setattr(steps.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(RuntimeError, match="the extension's build failed, see the log"):
        steps.build(this)
    (settings,) = seen
    assert (settings["TORCH_CUDA_ARCH_LIST"], settings["AFFNET_REQUIRE_EXTENSION"]) == ("9.0", "1")


def test_a_profiler_without_events_fails_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "profile_call", lambda this, made: (0, 0.0, {}))
    with pytest.raises(RuntimeError, match="the profiler recorded no kernel"):
        checks.launches(_steps_run(tmp_path))
    rows = [row for row in results.read([tmp_path / "results.csv"]) if row.suite == "launches"]
    assert {row.status for row in rows} == {"FAIL"}


def test_a_machine_without_a_sanitizer_skips_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps.shutil, "which", lambda name: None)
    this = _steps_run(tmp_path)
    this.stand_in = False
    with pytest.raises(context.Skip, match="compute-sanitizer is not on PATH"):
        steps.sanitizer(this)


def test_the_tests_step_leaves_what_it_had_when_it_is_killed(tmp_path: Path) -> None:
    """Its output goes to the log test by test; the tests of the sanitizer are left to a step of their own."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    (folder / "test_a_last.py").write_text(
        "import time, pytest\npytestmark = pytest.mark.gpu\n"
        "def test_slow(): time.sleep(60)\ndef test_sanitizer(): assert 0\n"
    )
    (folder / "test_triton.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_first(): pass\n")
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu_run import steps\n"
        f"steps.ROOT = Path({str(tmp_path)!r})\n"
        "sys.exit(steps.main(['tests', sys.argv[1], '--stand-in']))\n"
    )
    out = tmp_path / "out"
    job = driver.Job("tests", 25, (sys.executable, "-c", code, str(out)))
    assert driver.run([job], out, write_report=False) == 1
    said = (out / "log").read_text()
    assert "test_triton.py::test_first PASSED" in said
    assert "test_sanitizer" not in said
    assert results.read([out / "results.csv"])[-1].reason.startswith("stopped at its limit of 25 s; last said: ")


def test_a_stranger_sees_that_a_stand_in_is_no_gpu_run(stand_in: Path, tmp_path: Path) -> None:
    written = report.write([stand_in], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.splitlines()[0] == "# NOT A GPU RUN"
    assert "| met |" not in re.sub(" +", " ", text)
    assert len(written) <= 6


def test_a_machine_without_a_gpu_says_so_once_and_stops(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = (sys.executable, "-m", "benchmarks", "gpu", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("make gpu: expected a CUDA device that this PyTorch can use, got none; run it where")
    assert done.stderr.count("\n") == 1
    assert done.stdout.count("== ") == 1  # no other step was tried


def test_the_driver_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from benchmarks import __main__, report; "
        "from benchmarks.gpu_run import driver, plan; print(plan.table())"
    )
    assert subprocess.run((sys.executable, "-c", code), check=False, capture_output=True).returncode == 0


def test_cliffs_are_flagged(capsys: pytest.CaptureFixture[str]) -> None:
    def row(provider: str, case: str, ratio: float) -> results.Result:
        values = {"baseline": "eager", "ratio_p50": ratio, "reason": "runs cpu" if provider == "auto" else ""}
        return results.blank(suite="cliffs", case=case, provider=provider, status="OK", direction="forward", **values)

    rows = Rows(
        row(provider, case, ratio)
        for case, *ratios in (("64@31x31", 2.3, 2.2), ("64@64x1", 1.0, 0.3), ("64@53x53", 0.9, 0.8))
        for provider, ratio in zip(("auto", "cpu"), ratios, strict=True)
    )
    fine, named, slow = cliffs_table(rows).splitlines()[2:]
    assert "SLOWER" not in fine
    assert named.endswith("SLOWER: cpu |")
    assert slow.endswith("SLOWER: automatic, cpu |")
    assert "slower than eager on 1 of 3: 64@53x53 forward (0.90x)." in headlines(rows)[-1]


def test_the_overhead_is_the_call_less_the_kernel(meter: Meter) -> None:
    case = SUITES["overhead"].cases[0]
    kernel, call = meter.run(case, ("kernel", "cpu"))
    if call.status == "SKIP":
        pytest.skip(call.reason)
    assert (kernel.status, call.status, call.baseline) == ("OK", "OK", "kernel")
    assert 0 < call.ratio_p50 < 1  # the public call takes longer than its kernel
    assert re.search(r"\| +kernel \|", relative_table(Rows([call])))


def test_ratios_compare_with_the_same_backend_on_the_changed_case(meter: Meter) -> None:
    silu = TINY._replace(suite="activations", against=("activation", "relu"))
    (row,) = meter.run(silu, ("eager",))
    assert (row.activation, row.baseline) == ("silu", "eager, activation=relu")
    assert math.isfinite(row.ratio_p50)
    relu = next(case for case in SUITES["activations"].cases if case.activation == "relu")
    assert relu.against == cases.EAGER


def test_a_gate_that_flips_on_one_input_is_no_wrong_gradient(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that is wrong for the first input only is a flipped gate; one that is wrong for two is wrong."""
    eager = providers.PROVIDERS["eager"]
    for wrong_calls, status in ((1, "OK"), (2, "FAIL")):
        count = iter(range(1000))

        def build(case: Case, device: str, wrong_calls: int = wrong_calls, count: object = count) -> providers.Function:
            def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
                y = providers.eager(case)(x, *parameters)
                wrong = next(count) < wrong_calls  # type: ignore[call-overload]
                return y + 0.1 * (x - x.detach()) if wrong else y

            return function

        monkeypatch.setitem(providers.PROVIDERS, "auto", eager._replace(name="auto", build=build))
        (row,) = meter.run(TINY._replace(direction="forward+backward"), ("auto",))
        assert row.status == status, row.reason


class _FakeCuda:
    """Records what the timing protocol asks of a device, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[object] = []

        class Event:
            def __init__(event, enable_timing: bool) -> None: ...

            def record(event) -> None:
                self.done.append("event")

            def synchronize(event) -> None: ...

            def elapsed_time(event, other: object) -> float:
                return 1.0

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.done.append(cycles), raising=False)

    def evict(self) -> None:
        self.done.append("evict")


def test_the_device_spins_until_a_long_graph_is_enqueued(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that events around a graph of a thousand nodes do not count the gaps that its launch leaves."""
    device = _FakeCuda(monkeypatch)
    for host_seconds in (0.0, 0.01):

        def replay(host_seconds: float = host_seconds) -> None:
            time.sleep(host_seconds)
            device.done.append("graph")

        device.done.clear()
        timing._event_times(replay, 4, device, seconds=0)  # type: ignore[arg-type]
        evict, cycles, start, graph, stop = device.done[2:7]  # after two runs that measure the host
        assert (evict, start, graph, stop) == ("evict", "event", "graph", "event")
        assert cycles > timing.CLOCK * max(host_seconds, 1e-5)  # type: ignore[operator]


def test_an_absent_rival_is_skipped(meter: Meter) -> None:
    if "subquadratic_ops_torch" in sys.modules:
        pytest.skip("it is installed")
    with pytest.raises(providers.Unavailable, match=r"^subquadratic_ops_torch is not installed$"):
        providers.fused_fft_convolution(TINY, "cuda")


def test_the_fft_convolution_is_the_library_s() -> None:
    """Its crop starts at half the transform: a kernel that is one at that place is the identity."""
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    kernel = torch.zeros(3, 16, 16, dtype=torch.float64)
    kernel[:, 8, 8] = 1
    torch.testing.assert_close(mixers.fft_convolution(x, kernel), 2 * x)


def test_the_protocol_of_a_cuda_device_fills_every_column(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CPU's calls in the part of the device's: what no machine here can run must not fail on its first one."""
    monkeypatch.setattr(timing, "input_sets", lambda call_bytes: 3)
    monkeypatch.setattr(timing, "device_times", lambda runs, cold, seconds: ("graph", [float(len(runs))] * 3))
    monkeypatch.setattr(timing, "call_times", lambda run, seconds: [9.0] * 3)
    monkeypatch.setattr(Bench, "_on_cpu", Bench._on_cuda)
    monkeypatch.setattr(meter, "cold", object())
    relu, silu = (case for case in cases.cases("activations-cuda", ((2, 16, 8, 8),), activations=("relu", "silu"),
                  directions=("forward",), against=("activation", "relu")))  # fmt: skip
    eager, auto = meter.run(relu, ("eager", "auto"))
    assert (eager.status, auto.status, auto.baseline, auto.ratio_p50) == ("OK", "OK", "eager", 1.0)
    (row,) = meter.run(silu, ("auto",))
    assert (row.status, row.baseline, row.ratio_p50, row.call_p50_us) == ("OK", "auto, activation=relu", 1.0, 9.0)


@pytest.mark.parametrize(("height", "width"), [(64, 1), (256, 1), (1, 511), (1, 4096), (2, 1024), (31, 31)])
def test_every_awkward_size_has_an_input(height: int, width: int) -> None:
    x = inputs.feature_map(Case("cliffs", 1, 8, height, width))
    assert x.shape == (1, 8, height, width)
    assert torch.isfinite(x).all()
