"""Recipes, sampling, and the training loop on scikit-learn's digits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from affnet_kernels import __main__ as cli
from affnet_kernels.models import read_checkpoint
from affnet_kernels.training import Recipe, Settings, Summary, logs, train
from affnet_kernels.training.checkpoints import read_file
from affnet_kernels.training.recipe import recipe_names
from affnet_kernels.training.sampling import Draw, Plan, StepSampler, held_out_batches, seed_of
from affnet_kernels.training.schedule import rate_factor
from tests import tiny_task
from tests.processes import saved

SMALL = Recipe.load("digits").replace(size=32, epochs=2, batch=8, limit=24, ema=0.9)


def same(a: Any, b: Any) -> bool:
    """Equality to the last bit, of nested states."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def run_state(out: Path) -> dict[str, Any]:
    """What a finished run leaves, but for times."""
    state = saved(out)
    for name in ("seconds", "loading", "computing"):
        del state[name]
    epochs = logs.read_rows(out / logs.EPOCHS)
    for row in epochs:
        del row["seconds"]
    return {
        "state": state,
        "best": read_file(out / "best.pt"),
        "epochs": epochs,
        "steps": logs.read_rows(out / logs.STEPS),
    }


# -- recipes --


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_its_file(tmp_path: Path, name: str) -> None:
    recipe = Recipe.load(name).replace(options={"a": 1, "b": 0.5, "c": 'x"y', "d": True})
    (tmp_path / "copy.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.load(tmp_path / "copy.toml") == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 1.0}, "got learning_rate"),
        ({"epochs": 0}, "expected epochs >= 1, got 0"),
        ({"epochs": 1.5}, "expected epochs to be of type int, got 1.5"),
        ({"amp": "half"}, "expected amp to be one of"),
        ({"model": "resnet"}, "expected model to be one of"),
        ({"ema": 1.0}, r"expected ema in \[0, 1\), got 1.0"),
        ({"warmup_epochs": 30.0}, "expected warmup_epochs <= epochs, 2, got 30.0"),
        ({"betas": [0.9]}, "expected betas to be two"),
    ],
)
def test_a_wrong_recipe_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SMALL.replace(**values)


def test_a_missing_or_broken_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a TOML file"):
        Recipe.load(tmp_path / "none.toml")
    with pytest.raises(ValueError, match=r"expected a file ending with \.toml or one of"):
        Recipe.load("nothing")
    (tmp_path / "bad.toml").write_text("epochs = ", encoding="utf-8")
    with pytest.raises(ValueError, match="expected TOML"):
        Recipe.load(tmp_path / "bad.toml")


# -- sampling --


def test_every_image_is_drawn_once_an_epoch_in_an_order_of_its_own() -> None:
    plan = Plan(SMALL, 40)
    orders = [[draw.index for draws in plan.steps(epoch) for draw in draws] for epoch in range(2)]
    assert [sorted(order) for order in orders] == [list(range(40))] * 2
    assert orders[0] != orders[1]
    seeds = {draw.seed for epoch in range(2) for draws in plan.steps(epoch) for draw in draws}
    assert len(seeds) == 80


def test_the_images_of_a_step_vary_inversely_with_the_area() -> None:
    recipe = SMALL.replace(size=256, sizes=[160, 192, 224, 256, 288, 320], batch=64, epochs=3)
    plan = Plan(recipe, 5000)
    met = {}
    for epoch in range(3):
        steps = list(plan.steps(epoch))
        assert len(steps) == plan.length(epoch)
        for draws in steps:
            assert len({draw.size for draw in draws}) == 1
            met[draws[0].size[0]] = len(draws)
        drawn = [draw.index for draws in steps for draw in draws]
        assert len(set(drawn)) == len(drawn) > 5000 - max(plan.batches)
    assert met == {160: 164, 192: 114, 224: 84, 256: 64, 288: 51, 320: 41}
    assert plan.total == sum(plan.length(epoch) for epoch in range(3))


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (3, 2)])
def test_the_shares_of_the_processes_are_the_step(world_size: int, accumulate: int) -> None:
    plan = Plan(SMALL.replace(accumulate=accumulate), 40)
    samplers = [StepSampler(plan, rank, world_size) for rank in range(world_size)]
    for sampler in samplers:
        sampler.begin(1, 2)
    parts = [list(sampler) for sampler in samplers]
    assert all(len(part) == len(sampler) for part, sampler in zip(parts, samplers, strict=True))
    for number, draws in enumerate(list(plan.steps(1))[2:]):
        mine = slice(number * accumulate, (number + 1) * accumulate)
        shares = [share for together in zip(*(part[mine] for part in parts), strict=True) for share in together]
        assert all(shares)
        assert [draw for share in shares for draw in share] == draws


def test_a_step_too_small_for_its_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least an image for each of 4 processes and 3 parts of a step"):
        StepSampler(Plan(SMALL.replace(accumulate=3), 40), 0, 4)


def test_the_test_data_are_shared_out_once() -> None:
    batches = [batch for rank in range(3) for batch in held_out_batches(23, 32, 5, rank, 3)]
    assert [draw.index for batch in batches for draw in batch] == list(range(23))
    assert max(map(len, batches)) == 5
    assert batches[0][0] == Draw(0, 0, (32, 32))


def test_the_rate_rises_and_falls() -> None:
    recipe = SMALL.replace(epochs=10, rate=2.0, warmup_epochs=2.0, warmup_rate=0.2, final_rate=0.02)
    plan = Plan(recipe, 40)
    factor = rate_factor(recipe, plan)
    rates = [2 * factor(step) for step in range(plan.total + 1)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[5] == pytest.approx(1.1)
    assert rates[10] == max(rates) == pytest.approx(2.0)
    assert rates[30] == pytest.approx((2.0 + 0.02) / 2)
    assert rates[-1] == pytest.approx(0.02)
    assert sorted(rates[10:], reverse=True) == rates[10:]
    cosine = 0.02 + 1.98 * (1 + math.cos(math.pi * 3 / 40)) / 2
    assert rates[13] == pytest.approx(cosine)


# -- the loop --


def test_training_repeats_and_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same from an epoch's checkpoint, from one within an epoch, and with workers that load the data."""
    recipe = SMALL.replace(drop_rate=0.2, accumulate=2)
    whole = Settings(tmp_path / "whole", save_every=2, log_every=1, progress=False)
    train(recipe, whole)
    expected = run_state(whole.out)
    for stop, workers in ((3, 0), (5, 1)):  # of three steps an epoch; the checkpoints are after 2, 3, 5 and 6
        out = tmp_path / f"stopped{stop}"
        with monkeypatch.context() as patch:
            patch.setattr("affnet_kernels.training.engine.Trainer._log_step", stopper(stop))
            with pytest.raises(InterruptedError):
                train(recipe, Settings(out, save_every=2, log_every=1, workers=workers, progress=False))
        train(recipe, Settings(out, resume=True, save_every=2, log_every=1, workers=workers, progress=False))
        assert same(run_state(out), expected)


def stopper(step: int) -> Any:
    """In place of `_log_step`: raises in a step."""
    from affnet_kernels.training.engine import Trainer

    log_step = Trainer._log_step

    def stop(self: Trainer, *arguments: Any) -> None:
        if self._steps_done() == step:
            raise InterruptedError
        log_step(self, *arguments)

    return stop


def tiny(out: Path, recipe: Recipe = tiny_task.RECIPE, **settings: Any) -> Summary:
    return train(recipe, Settings(out, **{"log_every": 1, "progress": False} | settings))


def test_parts_of_a_step_give_the_gradient_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a network without BatchNorm and dropout, with a loss whose weight is not the number of images."""
    monkeypatch.setattr(tiny_task.nn, "Dropout", lambda rate: tiny_task.nn.Identity())
    torch.set_default_dtype(torch.float64)
    try:
        for accumulate in (1, 2, 4):
            tiny(tmp_path / str(accumulate), tiny_task.RECIPE.replace(accumulate=accumulate))
    finally:
        torch.set_default_dtype(torch.float32)
    curves = [[float(row["loss"]) for row in logs.read_rows(tmp_path / name / logs.STEPS)] for name in "124"]
    assert len(curves[0]) == 15
    assert curves[1] == pytest.approx(curves[0], rel=1e-12)
    assert curves[2] == pytest.approx(curves[0], rel=1e-12)


def test_the_loop_is_the_plain_one(tmp_path: Path) -> None:
    """AdamW with the schedule, clipping and average, written out: the same weights to the last bit but rounding."""
    recipe = tiny_task.RECIPE.replace(warmup_epochs=1.0, weight_decay=0.3)
    tiny(tmp_path / "run", recipe)
    torch.manual_seed(recipe.seed)
    task = tiny_task.build(recipe)
    model = task.model()
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98))
    average = [p.detach().clone() for p in model.parameters()]
    data, plan, step = task.train_data(), Plan(recipe, 40), 0
    for epoch in range(recipe.epochs):
        for draws in plan.steps(epoch):
            torch.manual_seed(seed_of(recipe.seed, 0, step, "step"))
            images, labels = task.collate([data[draw] for draw in draws])
            loss = task.loss(model(images), labels)
            (loss.total / loss.weight).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            warm = min(1.0, step / 5)
            cosine = (1 + math.cos(math.pi * max(0, step - 5) / 10)) / 2
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * warm * cosine
            optimizer.step()
            optimizer.zero_grad()
            for mean, parameter in zip(average, model.parameters(), strict=True):
                mean.copy_(parameter.detach() if step == 0 else mean.lerp(parameter.detach(), 1 - recipe.ema))
            step += 1
    state = saved(tmp_path / "run")
    torch.testing.assert_close(state["network"], dict(model.state_dict()), rtol=1e-5, atol=1e-6)
    averaged = [state["average"]["module"][name] for name, _ in model.named_parameters()]
    torch.testing.assert_close(averaged, average, rtol=1e-5, atol=1e-6)


def test_a_run_learns_and_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    summary = tiny(out, tiny_task.RECIPE.replace(epochs=12, rate=0.05))
    assert summary.metric == "top1"
    assert summary.best > 90
    assert summary.images == 12 * 40
    assert 0 < summary.loading + summary.computing < summary.seconds
    names = {path.name for path in out.iterdir()}
    assert {"recipe.toml", "log.csv", "steps.csv", "checkpoint-11", "checkpoint-12", "best.pt", "curves.png"} <= names
    assert (out / "predictions.png").read_bytes() == b"picture"
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not [name for name in names if name.endswith(".part")]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = logs.read_rows(out / logs.EPOCHS)
    assert [int(row["epoch"]) for row in rows] == list(range(1, 13))
    assert float(rows[-1]["train/part"]) == pytest.approx(float(rows[-1]["train/loss"]) / 2)
    assert max(float(row["test/top1"]) for row in rows) == summary.best
    best = read_file(out / "best.pt")
    assert best["classes"] == tiny_task.CLASSES
    assert Recipe.from_dict(best["recipe"]) == Recipe.load(out / "recipe.toml")
    assert read_checkpoint(out / "best.pt").keys() == tiny_task.build(tiny_task.RECIPE).model().state_dict().keys()


def test_evaluation_may_be_rarer(tmp_path: Path) -> None:
    tiny(tmp_path / "run", tiny_task.RECIPE.replace(evaluate_every=2))
    rows = logs.read_rows(tmp_path / "run" / logs.EPOCHS)
    assert [bool(row["test/top1"]) for row in rows] == [False, True, True]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision(tmp_path: Path, amp: str) -> None:
    """Near the run in full precision, and not it; the loss's scale is kept in checkpoints."""
    tiny(tmp_path / "full")
    tiny(tmp_path / amp, tiny_task.RECIPE.replace(amp=amp))
    full, half = (
        [float(row["loss"]) for row in logs.read_rows(tmp_path / name / logs.STEPS)] for name in ("full", amp)
    )
    assert half != full
    assert half == pytest.approx(full, rel=0.02)
    assert bool(saved(tmp_path / amp)["scaler"]) == (amp == "fp16")


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a finite loss, got (nan|inf) in step \d+ .* make rate smaller"):
        tiny(tmp_path / "run", tiny_task.RECIPE.replace(rate=1e30, clip=0.0))


def test_a_folder_with_a_run_is_refused(tmp_path: Path) -> None:
    tiny(tmp_path / "run")
    with pytest.raises(ValueError, match=r"expected a folder without a run, got .*run; continue it with --resume"):
        tiny(tmp_path / "run")


def test_another_recipe_is_refused_and_its_fields_named(tmp_path: Path) -> None:
    tiny(tmp_path / "run")
    with pytest.raises(ValueError, match=r"got another rate \(0.01, 0.5\), options \({}, {'bad': '1'}\); leave it"):
        tiny(tmp_path / "run", tiny_task.RECIPE.replace(rate=0.5, options={"bad": "1"}), resume=True)


def test_a_finished_run_is_not_trained_on(tmp_path: Path) -> None:
    first = tiny(tmp_path / "run")
    before = run_state(tmp_path / "run")
    assert tiny(tmp_path / "run", resume=True) == first
    assert same(run_state(tmp_path / "run"), before)


def test_samples_that_cannot_be_read_are_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In training the next one stands in, so that every batch is whole; in evaluation they are left out."""
    for workers in (0, 1):
        out = tmp_path / str(workers)
        summary = tiny(out, tiny_task.RECIPE.replace(options={"bad": "3 4 39"}), workers=workers)
        assert sorted(summary.skipped) == [
            f"Noise: expected a complete image, got noise{index}.jpg" for index in (3, 39, 4)
        ]
        assert summary.images == 3 * 40
        assert capsys.readouterr().err.count("skipped: Noise") == 3
        assert logs.read_rows(out / logs.EPOCHS)[-1]["skipped"] == "3"


def test_data_without_a_readable_sample_are_refused(tmp_path: Path) -> None:
    everything = " ".join(map(str, range(40)))
    with pytest.raises(ValueError, match="expected readable samples, got 100 in a row that are not: Noise"):
        tiny(tmp_path / "run", tiny_task.RECIPE.replace(options={"bad": everything}))


def test_a_run_without_data_or_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected task to be one of"):
        tiny(tmp_path / "a", Recipe(task="poetry"))
    with pytest.raises(ValueError, match="expected training data, got 0 images"):
        Plan(SMALL, 0)


# -- the command --


def test_the_command_trains_resumes_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(tiny_task.RECIPE.to_toml(), encoding="utf-8")
    arguments = ["train", "--recipe", str(recipe), "--out", str(out), "--quiet", "--set", "rate=2e-2"]
    assert cli.main([*arguments, "--epochs", "2", "--set", "options.bad=3"]) == 0
    said = capsys.readouterr().out
    for line in ("best top1", "images", "waiting for data", "model", "skipped samples"):
        assert line in said
    assert Recipe.load(out / "recipe.toml") == tiny_task.RECIPE.replace(rate=0.02, epochs=2, options={"bad": 3})
    assert cli.main(["train", "--out", str(out), "--resume"]) == 0  # the recipe is the run's
    assert cli.main([*arguments, "--resume"]) == 2
    assert "got another epochs (2, 3)" in capsys.readouterr().err
    assert cli.main([*arguments, "--set", "rate"]) == 2
    assert "expected --set FIELD=VALUE, got 'rate'" in capsys.readouterr().err
