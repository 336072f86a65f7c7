"""The AFFNet networks as what is measured: their weights, and one call of one of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from affnet_kernels import models
from affnet_kernels.models.aff_block import MixerBlock
from benchmarks import inputs
from benchmarks.cases import Case

CALIBRATION = 4  # images that the running statistics of BatchNorm are taken from


def network(case: Case, mixer: str) -> nn.Module:
    """The case's network with a mixer of that name, for the case's pass; "fused" has the weights of "reference"."""
    model = models.create_model(case.network, mixer=mixer, **_options(case))
    same = case._replace(suite="", batch=CALIBRATION, dtype="float32", direction="forward")
    model.load_state_dict(_state(same, "reference" if mixer == "fused" else mixer))
    return model.train(case.direction != "forward")


def official(case: Case) -> nn.Module:
    """The arithmetic of the official network: the reference mixer, in eager PyTorch."""
    return network(case, "reference")


def fused(case: Case) -> nn.Module:
    """The same with the fused mixer."""
    return network(case, "fused")


def fused_for_inference(case: Case) -> nn.Module:
    """The same, prepared for inference."""
    return models.fuse_for_inference(fused(case))


def channels_last(case: Case) -> nn.Module:
    """The same in the channels-last format: the first convolution's weight decides the format of its output."""
    return fused(case).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _options(case: Case) -> dict[str, Any]:
    return {"activation": case.activation, "img_size": (case.height, case.width)}


@lru_cache(maxsize=4)  # a token-mixing MLP for 512 pixels has 67 million weights
def _state(case: Case, mixer: str) -> dict[str, Tensor]:
    """The official initialisation, mixers at scale 1/sqrt(fan-in) so that they matter, and the photographs' statistics.

    Untrained statistics would let the maps fade from layer to layer, and every error with them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = models.create_model(case.network, mixer=mixer, **_options(case))
        for module in model.modules():
            if isinstance(module, MixerBlock):
                for name, parameter in module.filter.named_parameters():
                    nn.init.normal_(parameter, std=_scale(name, parameter))
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the statistics are those of all images seen
    with torch.no_grad():
        model(inputs.images(case))
    return model.state_dict()


def _scale(name: str, parameter: Tensor) -> float:
    if name in ("b1", "b2"):
        return 0.1
    # The filter's weights are [2, K, in, out], the others' [out, in...].
    return (parameter.shape[2] if parameter.ndim == 4 and name != "kernel" else math.prod(parameter.shape[1:])) ** -0.5


def compiled(prepare: Callable[[Case], nn.Module]) -> Callable[[Case], nn.Module]:
    """torch.compile of a network."""

    def build(case: Case) -> nn.Module:
        torch._dynamo.reset()
        return torch.compile(prepare(case), dynamic=False)  # type: ignore[return-value]

    return build


def counter() -> FlopCounterMode:
    """Counts operations, also of self-attention on a CPU, to which PyTorch does not apply its own formula."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def operations(q: torch.Size, k: torch.Size, v: torch.Size, *args: Any, **kwargs: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    return FlopCounterMode(display=False, custom_mapping={attention: operations})


class NetworkCall:
    """A network on a batch of images: call it for the logits, or for the logits and the gradients of a training step.

    AdamW has a learning rate of 0: it does all of its arithmetic, and the next call finds the same weights.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,  # [B, 3, H, W]
        case: Case,
    ) -> None:
        self._model, self._images, self._case = model, images, case
        self._parameters = list(model.parameters())
        self._optimizer = None
        if case.direction != "forward":
            on_cuda = images.device.type == "cuda"
            self._optimizer = torch.optim.AdamW(self._parameters, lr=0.0, fused=True, capturable=on_cuda)
        self._labels = torch.arange(len(images), device=images.device)

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self._parameters)

    def on(self, images: Tensor) -> NetworkCall:
        """The same on other images."""
        return NetworkCall(self._model, images, self._case)

    def __call__(self) -> tuple[Tensor, ...]:
        mixed = self._case.dtype != "float32" and self._images.dtype == torch.float32
        kind, dtype = self._images.device.type, getattr(torch, self._case.dtype)
        if self._optimizer is None:
            with torch.no_grad(), torch.autocast(kind, dtype, enabled=mixed):
                return (self._model(self._images),)
        with torch.autocast(kind, dtype, enabled=mixed):
            logits = self._model(self._images)
            loss = F.cross_entropy(logits, self._labels)
        loss.backward()
        self._optimizer.step()
        gradients = [parameter.grad for parameter in self._parameters]
        self._optimizer.zero_grad()
        return logits.detach(), *gradients
