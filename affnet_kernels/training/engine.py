"""The training loop: steps, average, evaluation, checkpoints, logs."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from affnet_kernels.training import logs
from affnet_kernels.training.checkpoints import save_file, write_text
from affnet_kernels.training.evaluation import autocast, evaluate, moved
from affnet_kernels.training.processes import Processes
from affnet_kernels.training.recipe import Recipe
from affnet_kernels.training.sampling import Batch, Plan, Readable, StepSampler, loader, seed_of
from affnet_kernels.training.schedule import decayed, rate_factor
from affnet_kernels.training.settings import Settings, Summary
from affnet_kernels.training.tasks import task_of

# What a checkpoint keeps of a Trainer beside its network's, optimiser's and average's states.
COUNTERS = ("epoch", "step", "images", "best", "best_epoch", "seconds", "loading", "computing", "sums")
RECIPE, BEST, CURVES, PREVIEW = "recipe.toml", "best.pt", "curves.png", "predictions.png"
LAUNCH = ".launch"  # what started the run in a folder: if that starts it again, it is resumed


def train(recipe: Recipe, settings: Settings, processes: Processes | None = None) -> Summary:
    """Train a recipe's network, and write into a folder what README lists.

    Args:
        recipe: what to train.
        settings: where, and with what means.
        processes: what trains together; None for this process alone, on the CPU.

    Returns:
        The result, the same in every process.

    Raises:
        ValueError: the recipe does not fit the data, differs from the one to resume, or the loss is not finite.
        OSError: something cannot be read or written; the message says what is kept.
        ImportError: a package is missing.
    """
    return Trainer(recipe, settings, processes or Processes()).run()


class Trainer:
    """A run: its network, optimiser, average, data and position."""

    def __init__(self, recipe: Recipe, settings: Settings, processes: Processes) -> None:
        from affnet_kernels.training.sharded import Checkpoints  # takes a second, which other commands need not wait

        self.recipe, self.settings, self.processes = recipe, settings, processes
        self.main = processes.rank == 0
        # Data that are not there must not leave a folder behind, which the next start would take for a run.
        self.task = task_of(recipe)
        self.data = Readable(self.task.train_data(), recipe.limit, substitute=True)
        self.plan = Plan(recipe, len(self.data))
        self.sampler = StepSampler(self.plan, processes.rank, processes.world_size)
        self.store = Checkpoints(settings.out, processes)
        saved = self._open_folder()
        torch.manual_seed(recipe.seed)
        network = self.task.model()
        if recipe.weights and saved is None:
            self.task.load_weights(network, recipe.weights)
        self.model = processes.wrap(network.to(processes.device))
        self.average = processes.average(self.model, recipe.ema) if recipe.ema else None
        self.optimizer = torch.optim.AdamW(decayed(self.model, recipe.weight_decay), lr=recipe.rate, betas=recipe.betas)
        self.schedule = LambdaLR(self.optimizer, rate_factor(recipe, self.plan))
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=recipe.amp == "fp16")
        self.dtype = next(network.parameters()).dtype
        self.epoch = self.step = self.images = 0  # step: of the epoch
        self.best, self.best_epoch = -math.inf, 0
        self.seconds, self.loading, self.computing = 0.0, 0.0, 0.0
        self.sums: dict[str, float] = {}  # of the epoch's steps so far
        self.skipped: list[str] = []
        self.resumed = saved is not None
        if saved is not None:
            self._restore(saved)
        self.started = time.perf_counter() - self.seconds

    # -- the run --

    def run(self) -> Summary:
        """Train to the end."""
        done = self._steps_done()
        self.progress = logs.Progress(self.plan.total, done, self.main and self.settings.progress)
        if self.main:
            resumed_at = done if self.resumed else None
            self.epochs_table = logs.Table(self.settings.out / logs.EPOCHS, resumed_at)
            self.steps_table = logs.Table(self.settings.out / logs.STEPS, resumed_at)
            self.events = logs.Events(self.settings.out, done)
        workers, device = self.settings.workers, self.processes.device
        batches = loader(self.data, self.sampler, self.task.collate, workers=workers, device=device)
        while self.epoch < self.recipe.epochs:
            self._epoch(batches)
        self.progress.close()
        return self._finish()

    def _epoch(self, batches: Any) -> None:
        self.sampler.begin(self.epoch, self.step)
        self.model.train()
        parts = iter(batches)
        while self.step < self.plan.length(self.epoch):
            self._step(parts)
            save_every = self.settings.save_every
            if save_every and self.step % save_every == 0 and self.step < self.plan.length(self.epoch):
                self._save()
        for sentences in self.processes.gather(self.skipped):
            self._note_skipped(sentences)
        row = self._epoch_row()
        last = self.epoch + 1 == self.recipe.epochs
        if last or (self.epoch + 1) % self.recipe.evaluate_every == 0:
            row |= self._evaluate()
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}
        if self.main:
            self._log_epoch(row)
        self._save()

    def _step(self, parts: Iterator[Any]) -> None:
        recipe, processes = self.recipe, self.processes
        torch.manual_seed(seed_of(recipe.seed, processes.rank, self._steps_done(), "step"))
        totals: dict[str, Tensor] = {}
        for part in range(recipe.accumulate):
            begin = time.perf_counter()
            batch = next(parts)
            loaded = time.perf_counter()
            with processes.last_part(self.model, part + 1 == recipe.accumulate):
                values = self._forward_backward(batch)
            for name, value in values.items():
                totals[name] = totals[name] + value if name in totals else value
            self.loading += loaded - begin
            self.computing += time.perf_counter() - loaded
            self._note_skipped(batch.skipped)
        begin = time.perf_counter()
        summed = processes.sum(torch.stack(list(totals.values()))).tolist()
        sums = dict(zip(totals, summed, strict=True))
        self._check(sums)
        rate = self.optimizer.param_groups[0]["lr"]
        norm = self._update(sums["weight"])
        self.step += 1
        self.images += int(sums["images"])
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in sums.items()}
        self._log_step(sums, rate, norm, batch.images.shape[-1])
        self.computing += time.perf_counter() - begin

    def _forward_backward(self, batch: Batch) -> dict[str, Tensor]:
        """Add a part's gradient, and return its sums by name, float64."""
        device = self.processes.device
        images = batch.images.to(device, self.dtype, non_blocking=True)
        targets = moved(batch.targets, device)
        with autocast(self.recipe, device):
            loss = self.task.loss(self.model(images), targets)
        # Near the mean already, for float16's sake; `_update` divides by the weight, which only then is known.
        share = self.processes.world_size / self.recipe.batch
        self.scaler.scale(loss.total * share).backward()
        count = torch.tensor(len(images), device=device)
        values = {"loss": loss.total, "weight": loss.weight, "images": count, **loss.parts}
        return {name: value.detach().double() for name, value in values.items()}

    def _update(
        self,
        weight: float,  # of the whole step
    ) -> Tensor | None:
        """Take the optimiser's step, and return the gradient's norm where it is limited."""
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(gradients, self.recipe.batch / (weight or 1))
        norm = self.processes.clip(self.model, self.recipe.clip) if self.recipe.clip else None
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        with warnings.catch_warnings():
            # In float16 the scaler leaves out the steps whose gradient overflows, and usually the first.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return norm

    # -- what is kept --

    def _steps_done(self) -> int:
        return self.plan.first(self.epoch) + self.step if self.epoch < self.recipe.epochs else self.plan.total

    def _open_folder(self) -> dict[str, Any] | None:
        """Make the folder or look through it, on behalf of all processes; the checkpoint to go on from."""
        claim: bool | Exception = False
        if self.main:
            try:
                claim = self._claim_folder()
            except (OSError, ValueError) as error:
                claim = error
        claim = self.processes.gather(claim)[0]
        if isinstance(claim, Exception):
            raise claim
        return self.store.load(self._say) if claim else None

    def _claim_folder(self) -> bool:
        """Make the folder or look through it; whether to resume what is there."""
        out, recipe_file, launch_file = (self.settings.out / name for name in ("", RECIPE, LAUNCH))
        out.mkdir(parents=True, exist_ok=True)
        launch = self.processes.launch
        again = bool(launch) and launch_file.is_file() and launch_file.read_text(encoding="utf-8") == launch
        if recipe_file.exists() or self.store.exist():
            if not (self.settings.resume or again):
                raise ValueError(f"train: expected a folder without a run, got {out}; continue it with --resume")
            if recipe_file.exists() and (changed := Recipe.load(recipe_file).differences(self.recipe)):
                raise ValueError(
                    f"train: expected the recipe of the run in {out}, got another {', '.join(changed)}; "
                    "leave it as it was, or start in another folder"
                )
        if launch:
            write_text(launch_file, launch)
        if not recipe_file.exists():
            write_text(recipe_file, self.recipe.to_toml())
        return self.settings.resume or again

    def _say(self, text: str) -> None:
        if self.main:
            print(text, file=sys.stderr, flush=True)

    def _save(self) -> None:
        self.seconds = time.perf_counter() - self.started
        values = {name: getattr(self, name) for name in COUNTERS}
        values |= {"schedule": self.schedule.state_dict(), "scaler": self.scaler.state_dict()}
        self.store.save(values, self.model, self.optimizer, self.average)

    def _restore(self, values: dict[str, Any]) -> None:
        self.store.restore(values, self.model, self.optimizer, self.average)
        self.schedule.load_state_dict(values["schedule"])
        self.scaler.load_state_dict(values["scaler"])
        for name in COUNTERS:
            setattr(self, name, values[name])
        self._say(f"train: resumed after step {self._steps_done()} of {self.plan.total} in {self.settings.out}")

    def _finish(self) -> Summary:
        model = self.processes.whole(self.model if self.average is None else self.average.module)
        if self.main:
            logs.draw_curves(self.epochs_table.rows, self.steps_table.rows, self.settings.out / CURVES)
            self.events.close()
            self.task.preview(model.eval(), self.settings.out / PREVIEW)
        return Summary(
            metric=self.task.metric,
            best=self.best,
            best_epoch=self.best_epoch,
            epochs=self.recipe.epochs,
            seconds=self.seconds,
            images=self.images,
            loading=self.loading,
            computing=self.computing,
            skipped=self.skipped,
        )

    # -- what it tells --

    def _check(self, sums: dict[str, float]) -> None:
        if not math.isfinite(sums["loss"]):
            raise ValueError(
                f"train: expected a finite loss, got {sums['loss']} in step {self._steps_done() + 1} (epoch "
                f"{self.epoch + 1}); make rate smaller, warmup_epochs or clip larger, or amp off"
            )

    def _log_step(self, sums: dict[str, float], rate: float, norm: Tensor | None, size: int) -> None:
        done, loss = self._steps_done(), sums["loss"] / (sums["weight"] or 1)
        self.progress.advance(f"epoch {self.epoch + 1}/{self.recipe.epochs} loss {loss:.4f}")
        if self.main and done % self.settings.log_every == 0:
            row = {"step": done, "epoch": self.epoch + 1, "size": size, "loss": loss, "rate": rate}
            self.steps_table.add(row | ({} if norm is None else {"gradient norm": float(norm)}))
            self.events.add({"step/loss": loss}, done)

    def _note_skipped(self, sentences: list[str]) -> None:
        for sentence in sentences:
            if sentence not in self.skipped:
                self.skipped.append(sentence)
                if self.main:
                    self.progress.say(f"skipped: {sentence}")

    def _epoch_row(self) -> dict[str, Any]:
        weight = self.sums["weight"] or 1
        means = {f"train/{n}": v / weight for n, v in self.sums.items() if n not in ("weight", "images")}
        rate = self.schedule.get_last_lr()[0]
        return {"step": self._steps_done(), "epoch": self.epoch + 1, "rate": rate, **means}

    def _evaluate(self) -> dict[str, Any]:
        model = self.model if self.average is None else self.average.module
        whole = self.processes.whole(model)
        metrics, skipped = evaluate(self.task, self.recipe, whole, self.processes, workers=self.settings.workers)
        self._note_skipped(skipped)
        if metrics[self.task.metric] > self.best:
            self.best, self.best_epoch = metrics[self.task.metric], self.epoch + 1
            weights = self.processes.weights(model)
            if self.main:
                state = {"model_state_dict": weights, "classes": self.task.classes, "recipe": self.recipe.to_dict()}
                save_file(state, self.settings.out / BEST)
        return {f"test/{name}": value for name, value in metrics.items()}

    def _log_epoch(self, row: dict[str, Any]) -> None:
        row |= {"seconds": round(time.perf_counter() - self.started, 3), "skipped": len(self.skipped)}
        self.epochs_table.add(row)
        self.events.add({name: value for name, value in row.items() if name != "step"}, row["step"])
        self.events.flush()
