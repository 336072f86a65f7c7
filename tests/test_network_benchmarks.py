"""The benchmarks of whole networks time right answers only, and their tables say what was measured."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from affnet_kernels import models
from benchmarks import evidence, inputs, network_tables, networks, providers, report, results, run, timing
from benchmarks.cases import (
    FORWARD_ONLY,
    NETWORKS,
    OFFICIAL,
    PASSES,
    RIVAL_NETWORKS,
    SUITES,
    TRAINING_ONLY,
    Case,
    default_suites,
)
from benchmarks.gpu_run import context
from benchmarks.measure import Bench, Meter
from benchmarks.providers import PROVIDERS
from benchmarks.tables import Rows, headlines

SMALL = Case("networks", 2, 3, 64, 64, blocks=1, against=OFFICIAL, network="affnet_et")
TRAINING = SMALL._replace(direction="forward+backward")
SUITES_HERE = [suite for suite in SUITES.values() if suite.name.startswith("networks")]


@pytest.fixture
def meter() -> Meter:
    return Meter("cpu", seconds=0.0, compile_seconds=0)


def test_the_suites_cover_networks_mixers_sizes_and_passes() -> None:
    assert all(case.network in NETWORKS and case.against == OFFICIAL for suite in SUITES_HERE for case in suite.cases)
    assert all(PROVIDERS[name].kind == "network" for suite in SUITES_HERE for name in suite.providers)
    assert default_suites("cpu")[:2] == ("headline", "networks")  # a run that is cut short has reached them
    shown = {(case.network, case.direction) for case in SUITES["networks"].cases}
    assert shown == {(network, direction) for network in NETWORKS for direction in PASSES}
    compared = SUITES["networks-mixers"]
    assert set(compared.providers) == {"official", "fused", *RIVAL_NETWORKS}
    assert {(case.network, case.height) for case in compared.cases if case.direction == "forward"} == {
        (network, size) for network in NETWORKS for size in (224, 256, 512)
    }


@pytest.mark.parametrize("case", [SMALL, TRAINING], ids=["forward", "training"])
def test_every_network_is_right_or_says_why(meter: Meter, case: Case) -> None:
    here = [name for name, provider in PROVIDERS.items() if provider.kind == "network" and "cpu" in provider.devices]
    names = [name for name in here if name not in (FORWARD_ONLY if case is TRAINING else TRAINING_ONLY)]
    rows = {row.provider: row for row in meter.run(case, tuple(names))}
    assert next(iter(rows)) == "official"
    ours = "fused-channels-last" if case is TRAINING else "fused-inference"
    for name in ("official", "fused", ours, *RIVAL_NETWORKS):
        row = rows[name]
        assert (row.status, row.case, row.baseline) == ("OK", "affnet_et@64", "official"), row
        assert row.samples >= 5
        assert row.peak_bytes > 0
        assert 0 < row.error < 1e-3
        assert (row.gflop_per_s > 0) == (case.direction == "forward")
    assert {rows[name].reason for name in ("compiled", "fused-compiled")} == {"the time for compilations is spent"}
    assert rows["fused"].reason == "1436264 parameters"
    assert rows["with-attention"].reason != rows["fused"].reason


def test_autocast_is_judged_by_the_definition_under_autocast(meter: Meter) -> None:
    bench = Bench(meter, SMALL._replace(dtype="bfloat16"))
    _, official, bound = bench.check(PROVIDERS["official"])
    assert bound == pytest.approx(1.5 * official)
    _, fused, same = bench.check(PROVIDERS["fused"])
    assert same == bound
    assert 1e-3 < fused <= bound


class _Off(nn.Module):
    """A network whose logits are off by a thousandth."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.001 * self.network(x)


@pytest.mark.parametrize(("case", "bound"), [(SMALL, "3.0e-05"), (TRAINING, "2.0e-04")], ids=["forward", "training"])
def test_a_wrong_network_is_not_timed(monkeypatch: pytest.MonkeyPatch, meter: Meter, case: Case, bound: str) -> None:
    wrong = PROVIDERS["fused"]._replace(build=lambda case, device: _Off(networks.fused(case)))
    monkeypatch.setitem(PROVIDERS, "fused", wrong)
    (row,) = meter.run(case, ("fused",))
    assert row.status == "FAIL"
    assert math.isnan(row.p50_us)
    assert row.reason == f"relative L2 error 1.0e-03 against float64, expected at most {bound}; not timed"


def test_a_wrong_gradient_is_not_timed(monkeypatch: pytest.MonkeyPatch, meter: Meter) -> None:
    def build(case: Case, device: str) -> nn.Module:
        model = networks.fused(case)
        model.conv_1.block.conv.weight.register_hook(lambda gradient: 1.5 * gradient)
        return model

    monkeypatch.setitem(PROVIDERS, "fused", PROVIDERS["fused"]._replace(build=build))
    (row,) = meter.run(TRAINING, ("fused",))
    assert row.status == "FAIL"


def test_a_training_step_finds_the_same_weights_again() -> None:
    call = providers.call_of(PROVIDERS["official"], TRAINING, inputs.example(TRAINING))
    first, second = call(), call()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(first) == 1 + len(list(networks.official(TRAINING).parameters()))


def test_the_mixers_matter_and_the_statistics_are_the_photographs() -> None:
    x = inputs.images(SMALL)
    model = networks.official(SMALL)
    with torch.no_grad():
        before = model(x)
        for name, parameter in model.named_parameters():
            if name.endswith("filter.w2"):
                parameter.zero_()
        assert (model(x) - before).norm() > 0.1 * before.norm()
    initial = models.affnet_et().state_dict()["conv_1.block.norm.running_var"]
    assert not torch.equal(networks.official(SMALL).state_dict()["conv_1.block.norm.running_var"], initial)


def test_the_operations_of_self_attention_are_counted() -> None:
    """PyTorch's counter has no entry for the kernel of a CPU."""
    q = torch.zeros(2, 4, 64, 16, dtype=torch.float64)
    with networks.counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert counter.get_total_flops() == 2 * (2 * 2 * 4 * 64 * 64 * 16)


@pytest.mark.parametrize("size", [32, 512])
def test_images_are_photographs_of_any_size(size: int) -> None:
    pytest.importorskip("sklearn")
    case = SMALL._replace(height=size, width=size)
    x = inputs.example(case)
    assert x.shape == (2, 3, size, size)
    assert inputs.source(case) == "photographs"
    assert 0 <= x.min() < x.max() <= 1


def test_what_has_one_pass_is_not_asked_for_the_other() -> None:
    suite = SUITES["networks"]
    assert set(suite.providers_for(SMALL)) == {"official", "fused", "fused-inference"}
    assert set(suite.providers_for(TRAINING)) == {"official", "fused", "fused-channels-last"}


def test_named_providers_meet_only_their_own_kind(tmp_path: Path, meter: Meter) -> None:
    mixer = SUITES["quick"].cases[0]
    rows = run.run([mixer, SMALL], tmp_path / "r.csv", meter, ["eager", "official"])
    assert [(row.case, row.provider) for row in rows[1:]] == [(mixer.name, "eager"), ("affnet_et@64", "official")]


def test_a_compilation_does_not_outlast_the_run(tmp_path: Path, meter: Meter) -> None:
    meter.compile_seconds = 1e9
    run.run(SUITES["quick"].cases[:1], tmp_path / "r.csv", meter, ["clone"], deadline=time.monotonic() + 50)
    assert meter.compile_seconds <= 50


def test_the_protocol_of_a_cuda_device(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CPU's calls in the part of the device's, as no GPU may be here."""
    graphs: list[int] = []

    def capture(runs: list[timing.Run]) -> tuple[object, list[object]]:
        graphs.append(len(runs))
        return SimpleNamespace(replay=runs[0]), []

    monkeypatch.setattr(timing, "capture", capture)
    monkeypatch.setattr(timing, "device_times", lambda runs, cold, seconds: ("graph", [float(len(runs))] * 3))
    monkeypatch.setattr(timing, "call_times", lambda run, seconds: [9.0 * len(run())] * 3)
    monkeypatch.setattr(Bench, "_on_cpu", Bench._on_cuda)
    monkeypatch.setattr(meter, "cold", object())
    official, graph = meter.run(SMALL, ("official", "official-graph"))
    assert (official.status, graph.status, graph.baseline, graph.ratio_p50) == ("OK", "OK", "official", 1.0)
    assert official.p50_us == 1.0  # one set of images: the network's own maps fill the cache
    assert (official.call_p50_us, graph.call_p50_us) == (9.0, 9.0)
    assert graphs == [1]


def test_a_rehearsal_runs_a_tiny_network(tmp_path: Path) -> None:
    this = context.Run(tmp_path, stand_in=True)
    cases = {this.small(case) for suite in SUITES_HERE for case in suite.cases}
    assert {(case.network, case.height, case.channels) for case in cases} == {("affnet_et", 64, 3)}


def _row(network: str, provider: str, milliseconds: float, **values: object) -> results.Result:
    case = {"suite": "networks", "case": f"{network}@256", "batch": 4, "channels": 3, "height": 256, "width": 256}
    fixed = {"device": "A Processor", "device_type": "cpu", "torch": "2.0", "commit": "0123456789ab", "threads": 1}
    kind = {"dtype": "float32", "direction": "forward", "activation": "silu", "protocol": "paired", "status": "OK"}
    time_us = {"p50_us": 1e3 * milliseconds, "call_p50_us": 1e3 * milliseconds, "ratio_p50": 100 / milliseconds}
    found = {"peak_bytes": 3 << 20, "gflop_per_s": 8e6 / (1e3 * milliseconds), "reason": "1500000 parameters"}
    return results.blank(**(fixed | case | kind | time_us | found | {"provider": provider, "error": 7e-6} | values))


def _rows() -> list[results.Result]:
    rows = []
    for network in NETWORKS:
        for provider, milliseconds in (("official", 100.0), ("fused", 80.0), ("fused-inference", 40.0)):
            rows.append(_row(network, provider, milliseconds))
            rows.append(_row(network, provider, milliseconds / 4, batch=1, ratio_p50=200 / milliseconds))
        rows.append(
            _row(
                network,
                "fused",
                200.0,
                direction="forward+backward",
                ratio_p50=1.3,
                batch=2,
                peak_bytes=5 << 20,
                error=8e-4,
            )
        )
        for size in (224, 256, 512):
            for provider, slow in (("official", 1.0), ("fused", 0.8), ("with-attention", size / 200)):
                other = {"suite": "networks-mixers", "case": f"{network}@{size}", "height": size, "width": size}
                rows.append(_row(network, provider, slow * size / 8, batch=1, **other))
    return rows


def test_the_tables_of_networks() -> None:
    rows = Rows(_rows())
    lines = [re.sub(" +", " ", line) for line in network_tables.speeds(rows).splitlines()]
    assert (
        "| affnet@256, float32, fused for inference | 100.0 | 2.50x | 10.0 | 5.00x | - | - | 3 | - | 7e-06 |" in lines
    )
    assert "| affnet@256, float32, fused mixer | 50.0 | 1.25x | 20.0 | 2.50x | 10.0 | 1.30x | 3 | 5 | 8e-04 |" in lines
    assert lines[-1].startswith("Forward at B=4; a training step is forward, cross-entropy, backward and AdamW, at B=2")
    said = re.sub(" +", " ", network_tables.sizes(rows))
    assert "| affnet_t | 1,500,000 | 1,000.0 | 800 |" in said
    assert "FlopCounterMode counts two operations for each multiply-add, halved here, and no FFT." in said
    said = re.sub(" +", " ", network_tables.mixers(rows))
    assert "at 224 / 256 / 512 pixels" in said
    assert "| affnet, float32, with self-attention | 1.50 | 4.00 | 31.9 / 24.4 / 6.1 | 3 | - |" in said


def test_on_a_gpu_the_official_network_s_call_is_the_basis() -> None:
    official, fused = (
        _row("affnet", name, ms, protocol="graph", ratio_p50=9.0) for name, ms in (("official", 30.0), ("fused", 20.0))
    )
    assert network_tables.speedup(Rows([official, fused]), fused) == pytest.approx(1.5)


def test_the_printed_summary_ends_with_the_networks_table() -> None:
    rows = Rows(_rows())
    assert report.summary(rows).endswith(network_tables.speeds(rows))
    assert "Whole network, fused for inference, float32, forward: 2.50x official" in report.summary(rows)
    assert headlines(rows) == []
    text = report.text(rows, [])
    assert "## The networks, end to end" in text
    assert "Time of a call" not in text  # the mixers' tables do not name networks


def test_readme_gets_the_networks_tables_from_committed_rows(tmp_path: Path) -> None:
    block = evidence.BLOCKS[0]
    path = tmp_path / "a-processor.csv"
    with results.Writer(path) as writer:
        for row in _rows():
            writer.write(row)
    said = evidence.text(block, tmp_path)
    assert said.endswith(network_tables.speeds(Rows(results.read([path]))))
    assert "- Whole network, fused for inference, float32, forward: 2.50x official" in said


def test_the_picture_of_networks(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with results.Writer(tmp_path / "results.csv") as writer:
        for row in _rows():
            writer.write(row)
    written = report.write([tmp_path], tmp_path / "to")
    assert [path.name for path in written] == ["report.md", "networks.png"]
    assert written[1].stat().st_size > 10_000
