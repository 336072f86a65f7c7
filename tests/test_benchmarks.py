"""The benchmarks: what they measure is right, what they write is readable, what goes wrong is said."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks import growth, inputs, memory, providers, report, results, run, timing
from benchmarks.cases import HEADLINE, SHIPPED, SUITES, Case
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
            row = results.blank(suite="sweep", provider=provider, case=f"64@{size}x{size}", batch=1, channels=64)
            row = replace(row, height=size, width=size, dtype="float32", direction="forward", status="OK")
            rows.append(replace(row, p50_us=0.01 * (size * size) ** power, gb_per_s=10.0, ratio_p50=1.0))
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
