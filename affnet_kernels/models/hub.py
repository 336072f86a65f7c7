"""Saving to, loading from and pushing to the Hugging Face hub, where huggingface_hub is installed."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from typing_extensions import Self

    from affnet_kernels.models.affnet import AFFNet

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # huggingface_hub's names
CARD_TEMPLATE = """\
---
{{ card_data }}
---

An [AFFNet]({{ paper_url }}) of the Python package affnet_kernels. `config.json` holds its options.

```python
from affnet_kernels.models import AFFNet

model = AFFNet.from_pretrained("owner/name")  # this repository, or a folder with its files
```
"""
CARD: dict[str, Any] = {
    "model_card_template": CARD_TEMPLATE,
    "library_name": "affnet_kernels",
    "license": "mit",
    "paper_url": "https://arxiv.org/abs/2307.14008",
    "pipeline_tag": "image-classification",
    "tags": ["affnet", "image-classification"],
}


class HubMixin:
    """`from_pretrained`, `save_pretrained` and `push_to_hub` of AFFNet.

    huggingface_hub's own mixin is used on first need and stays outside the network: it would add to the import of every
    program, and take over how networks are constructed and copied.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **options: Any,
    ) -> Self:
        """The network that `save_pretrained` or `push_to_hub` wrote, in eval mode.

        Args:
            pretrained_model_name_or_path: a folder, or a repository of the hub as "owner/name".
            revision, token, cache_dir, force_download, local_files_only: as in `huggingface_hub.hf_hub_download`.
            options: as in `AFFNet`, before those saved. With another `num_classes` the classifier is a new one, and
                with 0 there is none.

        Raises:
            ValueError: what is saved is damaged, or does not fit the options.
            OSError: a folder or repository with both files does not exist, or cannot be reached.
            ImportError: huggingface_hub or safetensors is not installed.
        """
        from affnet_kernels.models.checkpoint import build, load_state, read_checkpoint

        _adapter("from_pretrained")
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError

        source = os.fspath(pretrained_model_name_or_path)

        def path_of(name: str) -> Path:
            if os.path.isdir(source):
                path = Path(source, name)
                if not path.is_file():
                    raise FileNotFoundError(
                        f"from_pretrained: expected {CONFIG} and {WEIGHTS} in {source}, got no {name}"
                    )
                return path
            try:
                return Path(
                    hf_hub_download(
                        source,
                        name,
                        revision=revision,
                        token=token,
                        cache_dir=cache_dir,
                        force_download=force_download,
                        local_files_only=local_files_only,
                    )
                )
            except HFValidationError as error:
                raise ValueError(
                    f"from_pretrained: expected a folder, or a repository as owner/name, got {source}"
                ) from error

        config = path_of(CONFIG)
        try:
            saved = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:  # of JSON or of UTF-8
            raise ValueError(f"from_pretrained: expected JSON, got {config}: {error}") from error
        if not isinstance(saved, dict) or not isinstance(saved.get("num_classes"), int):
            raise ValueError(
                f"from_pretrained: expected the options of an AFFNet, got {config}; save_pretrained writes them"
            )
        try:
            model = build(saved | options, cast("type[AFFNet]", cls))
        except TypeError as error:
            raise ValueError(f"from_pretrained: expected the options of an AFFNet, got {config}: {error}") from error
        weights = path_of(WEIGHTS)
        new_classifier = model.num_classes != saved["num_classes"]
        load_state(model, read_checkpoint(weights), os.fspath(weights), new_classifier=new_classifier)
        return cast("Self", model.eval())

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> str | None:
        """Write weights (safetensors), options (JSON) and, unless there is one, a model card.

        Args:
            save_directory: the folder, which is made if it does not exist.
            options: as in `huggingface_hub.PyTorchModelHubMixin.save_pretrained`, such as `push_to_hub=True`.

        Raises:
            ValueError: the network was changed so that its options no longer build it.
            OSError: the folder cannot be written.
            ImportError: huggingface_hub or safetensors is not installed.
        """
        saver = _adapter("save_pretrained")(self)
        return cast("str | None", saver.save_pretrained(save_directory, config=_config(self), **options))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes to the repository `repo_id`, "owner/name"; returns the commit's address.

        Args:
            options: as in `huggingface_hub.PyTorchModelHubMixin.push_to_hub`, such as `private=True`.

        Raises:
            ValueError, ImportError: as `save_pretrained`.
            OSError: the hub cannot be reached, or refuses.
        """
        saver = _adapter("push_to_hub")(self)
        return cast("str", saver.push_to_hub(repo_id, config=_config(self), **options))


@cache
def _adapter_class() -> Any:
    import safetensors.torch  # noqa: F401 - what the mixin writes with
    from huggingface_hub import PyTorchModelHubMixin

    class Adapter(PyTorchModelHubMixin, **CARD):
        """A network as the mixin wants it: it saves the attribute `module`."""

        def __init__(self, module: nn.Module) -> None:
            self.module = module

    return Adapter


def _adapter(method: str) -> Any:
    try:
        return _adapter_class()
    except ImportError as error:
        raise ImportError(
            f"{method}: expected huggingface_hub and safetensors, got {error}; pip install huggingface_hub safetensors"
        ) from error


def _config(self: HubMixin) -> dict[str, Any]:
    """The network's options, after a look whether they still build it."""
    from affnet_kernels.models.checkpoint import build, differences

    network = cast("AFFNet", self)
    with torch.random.fork_rng(devices=[]):
        built = build(network.options, type(network))
    if differing := differences(built.state_dict(), network.state_dict()):
        raise ValueError(
            f"save_pretrained: expected the network that its options build, got one with {', '.join(differing)}; "
            "save it before it is changed, or its state_dict alone"
        )
    return network.options
