"""Recipes: all that decides what a training run computes, as a frozen dataclass and as TOML."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.models import MODELS
from affnet_kernels.models.layers import NORMS
from affnet_kernels.models.token_mixers import MIXERS

AMP = ("off", "bf16", "fp16")
Option = str | int | float | bool


@dataclass(frozen=True)
class Recipe:
    """All that decides what a training run computes; where and how fast it runs is not in here.

    Attributes:
        task: "classification", "detection" or "segmentation".
        data: the name of an embedded data set, or a folder.
        model: one of `MODELS`.
        mixer, activation, norm: as in `AFFNet`.
        drop_rate, drop_path_rate: as in `AFFNet`.
        weights: a checkpoint that the model starts from, "" for none; a new classifier where the classes differ.
        size: H and W of the images, in evaluation too.
        sizes: H and W that training draws from, a size a step; the images of a step vary inversely with the area, so
            that every step costs the same. Empty: `size` alone.
        epochs: passes over the training data.
        batch: images of an optimiser's step at `size`, over all processes and parts of the step.
        accumulate: parts that a process computes its share of a step in, one after another.
        seed: of the initial weights, the order, the augmentation and the dropout.
        rate: AdamW's largest learning rate, after the warm-up.
        final_rate: the learning rate in the end.
        warmup_epochs: in which the rate rises from `warmup_rate` linearly; the rest is a cosine.
        warmup_rate: the first learning rate.
        weight_decay: AdamW's, of weights of two and more dimensions.
        betas: AdamW's.
        clip: largest L2 norm of the gradient, 0 for no limit.
        amp: "off", "bf16" or "fp16", the last with a scaled loss.
        ema: decay of the averaged weights, which are evaluated and published; 0 for none.
        label_smoothing: of the cross-entropy.
        limit: images of the training and of the test data that are used, spread evenly; 0 for all.
        evaluate_every: epochs from one evaluation to the next; the last epoch is always evaluated.
        options: what a task or its data understand beyond that, by name.

    Raises:
        ValueError: a field is not as above.
    """

    task: str = "classification"
    data: str = "digits"
    model: str = "affnet_et"
    mixer: str = "fused"
    activation: str = "silu"
    norm: str = "layer_norm_2d"
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    weights: str = ""
    size: int = 256
    sizes: tuple[int, ...] = ()
    epochs: int = 1
    batch: int = 32
    accumulate: int = 1
    seed: int = 0
    rate: float = 1e-3
    final_rate: float = 0.0
    warmup_epochs: float = 0.0
    warmup_rate: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 0.0
    amp: str = "off"
    ema: float = 0.0
    label_smoothing: float = 0.0
    limit: int = 0
    evaluate_every: int = 1
    options: dict[str, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def expect(right: bool, expected: str, name: str) -> None:
            if not right:
                raise ValueError(f"Recipe: expected {name} {expected}, got {getattr(self, name)!r}")

        for name in ("size", "epochs", "batch", "accumulate", "evaluate_every"):
            expect(getattr(self, name) >= 1, ">= 1", name)
        expect(self.model in MODELS, f"to be one of {list(MODELS)}", "model")
        expect(self.mixer in MIXERS, f"to be one of {list(MIXERS)}", "mixer")
        expect(self.activation in ACTIVATIONS, f"to be one of {list(ACTIVATIONS)}", "activation")
        expect(self.norm in NORMS, f"to be one of {list(NORMS)}", "norm")
        expect(self.amp in AMP, f"to be one of {list(AMP)}", "amp")
        expect(all(size >= 1 for size in self.sizes), "all >= 1", "sizes")
        expect(len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "to be two in [0, 1)", "betas")
        for name in ("ema", "label_smoothing", "drop_rate", "drop_path_rate"):
            expect(0 <= getattr(self, name) < 1, "in [0, 1)", name)
        for name in ("rate", "final_rate", "warmup_epochs", "warmup_rate", "weight_decay", "clip", "limit"):
            expect(getattr(self, name) >= 0, ">= 0", name)
        expect(self.warmup_epochs <= self.epochs, f"<= epochs, {self.epochs}", "warmup_epochs")

    @staticmethod
    def load(source: str | os.PathLike[str]) -> Recipe:
        """The recipe in a TOML file, or the package's own of that name, as "digits".

        Raises:
            OSError: there is no such file.
            ValueError: it is not TOML, has an unknown field, or one of the wrong type or value.
        """
        name = os.fspath(source)
        if name.endswith(".toml"):
            path = Path(name)
            if not path.is_file():
                raise FileNotFoundError(f"Recipe.load: expected a TOML file, got {name}, which does not exist")
            text = path.read_text(encoding="utf-8")
        else:
            if name not in recipe_names():
                raise ValueError(
                    f"Recipe.load: expected a file ending with .toml or one of {recipe_names()}, got {name}"
                )
            text = (_folder() / f"{name}.toml").read_text(encoding="utf-8")
        toml = _toml()
        try:
            values = toml.loads(text)
        except toml.TOMLDecodeError as error:
            raise ValueError(f"Recipe.load: expected TOML, got {name}: {error}") from error
        return Recipe.from_dict(values)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Recipe:
        """The recipe of `to_dict`, or of parsed TOML.

        Raises:
            ValueError: there is an unknown field, or one of the wrong type or value.
        """
        return Recipe().replace(**values)

    @staticmethod
    def value(text: str) -> Any:
        """A value as TOML writes it; a text may lack its quotes."""
        toml = _toml()
        try:
            return toml.loads(f"value = {text}")["value"]
        except toml.TOMLDecodeError:
            return text

    def to_dict(self) -> dict[str, Any]:
        """The fields in TOML's types."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_toml(self) -> str:
        """The recipe as `load` reads it."""
        values = self.to_dict()
        options = values.pop("options")
        lines = [f"{name} = {_literal(value)}" for name, value in values.items()]
        if options:
            lines += ["", "[options]", *(f"{name} = {_literal(value)}" for name, value in options.items())]
        return "\n".join(lines) + "\n"

    def replace(self, **values: Any) -> Recipe:
        """This recipe with other values; those of `options` are added to the ones that are there.

        Raises:
            ValueError: as in `from_dict`.
        """
        fields = {field.name: field for field in dataclasses.fields(self)}
        if unknown := [name for name in values if name not in fields]:
            raise ValueError(f"Recipe: expected fields of {list(fields)}, got {', '.join(unknown)}")
        typed = {name: _typed(name, value, getattr(self, name)) for name, value in values.items()}
        if "options" in typed:
            typed["options"] = self.options | typed["options"]
        return dataclasses.replace(self, **typed)

    def differences(self, other: Recipe) -> list[str]:
        """The fields in which two recipes differ, as "name (this value, that one)"."""
        mine, others = self.to_dict(), other.to_dict()
        return [f"{name} ({mine[name]!r}, {others[name]!r})" for name in mine if mine[name] != others[name]]


def recipe_names() -> list[str]:
    """The package's own recipes."""
    return sorted(file.name[: -len(".toml")] for file in _folder().iterdir() if file.name.endswith(".toml"))


def _folder() -> Any:
    return resources.files("affnet_kernels.training") / "recipes"


def _toml() -> Any:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"Recipe.load: expected tomli on Python 3.10, got {error}; pip install tomli") from error


def _literal(value: Any) -> str:
    """A value as TOML writes it: JSON's way, but for numbers such as 1e-05."""
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _typed(name: str, value: Any, like: Any) -> Any:
    """The value in the field's type: TOML has lists where the recipe has tuples, and may write 1 for 1.0."""
    if isinstance(like, tuple) and isinstance(value, (list, tuple)):
        element = int if name == "sizes" else float
        return tuple(_typed(name, part, element()) for part in value)
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(like):
        raise ValueError(f"Recipe: expected {name} to be of type {type(like).__name__}, got {value!r}")
    return value
