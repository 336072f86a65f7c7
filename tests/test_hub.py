"""AFFNet on the Hugging Face hub, without a network: folders, and stand-ins for upload and download."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from affnet_kernels.models import MODELS, AFFNet, create_model
from affnet_kernels.models.hub import _adapter_class

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


class Mine(AFFNet):
    pass


def tiny(kind: type[AFFNet] = AFFNet, **options: Any) -> AFFNet:
    model = kind((8, 8, 8, 16, 24), (1, 2, 1, 2, 1), 2, **({"num_classes": 5} | options))
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)  # running statistics that no new network has
    return model.eval()


def assert_equal(got: AFFNet, expected: AFFNet) -> None:
    assert type(got) is type(expected)
    assert got.options == expected.options
    assert not got.training
    x = torch.randn(2, got.in_chans, 64, 32)
    with torch.no_grad():
        assert torch.equal(got(x), expected(x))


@pytest.mark.parametrize("name", MODELS)
def test_every_network_comes_back(name: str, tmp_path: Path) -> None:
    model = create_model(name, num_classes=7, in_chans=1, activation="relu", drop_rate=0.2, drop_path_rate=0.1).eval()
    model.save_pretrained(tmp_path / "new folder")
    assert sorted(path.name for path in (tmp_path / "new folder").iterdir()) == FILES
    assert_equal(AFFNet.from_pretrained(tmp_path / "new folder"), model)


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "batch_norm_2d", "output_stride": 8},
        {"norm": "layer_norm", "fusion": (True, False, False)},
        {"mixer": "mlp", "img_size": (64, 32)},
        {"mixer": "large-kernel", "img_size": 64},
        {"kind": Mine},
    ],
)
def test_every_option_comes_back(options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(**options)
    model.save_pretrained(tmp_path)
    assert_equal(type(model).from_pretrained(str(tmp_path)), model)


@pytest.mark.parametrize("num_classes", [0, 9])
def test_a_new_classifier_comes_back(num_classes: int, tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    model.reset_classifier(num_classes)
    model.save_pretrained(tmp_path)
    assert_equal(AFFNet.from_pretrained(tmp_path), model)


def test_options_are_all_and_plain_json() -> None:
    model = tiny(img_size=(64, 32))
    assert set(model.options) == set(inspect.signature(AFFNet.__init__).parameters) - {"self"}
    assert json.loads(json.dumps(model.options)) == model.options
    assert model.options == AFFNet(**model.options).options


def test_options_go_before_those_saved(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    model = AFFNet.from_pretrained(tmp_path, activation="relu", num_classes=9)
    assert (model.options["activation"], model.options["num_classes"]) == ("relu", 9)
    assert model.get_classifier().weight.shape == (9, model.num_features)
    with pytest.raises(ValueError, match=r"build AFFNet with norm='layer_norm_2d', as from_checkpoint does$"):
        AFFNet.from_pretrained(tmp_path, norm="batch_norm_2d")


def test_saving_draws_no_random_numbers(tmp_path: Path) -> None:
    model, before = tiny(), torch.get_rng_state()
    model.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_card(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.license) == ("affnet_kernels", "mit")
    assert card.data.pipeline_tag == "image-classification"
    assert "affnet" in card.data.tags
    assert "https://arxiv.org/abs/2307.14008" in card.text


def test_push_to_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = {}

    def create_repo(self: object, repo_id: str, **options: Any) -> Any:
        pushed["private"] = options["private"]
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self: object, repo_id: str, folder_path: Path, **options: Any) -> str:
        pushed.update(
            repo_id=repo_id, model=AFFNet.from_pretrained(folder_path), files=sorted(map(str, folder_path.iterdir()))
        )
        return "the commit"

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    model = tiny()
    assert model.push_to_hub("me/mine", private=True) == "the commit"
    assert (pushed["repo_id"], pushed["private"]) == ("me/mine", True)
    assert [Path(path).name for path in pushed["files"]] == FILES
    assert_equal(pushed["model"], model)


def test_a_repository_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)

    def download(repo_id: str, filename: str, *, revision: str, local_files_only: bool, **options: Any) -> str:
        assert (repo_id, revision, local_files_only) == ("me/mine", "v1", True)
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert_equal(AFFNet.from_pretrained("me/mine", revision="v1", local_files_only=True), model)


def test_copies_and_pickles_stay_as_they_are() -> None:
    model = tiny()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_equal(other, model)
    other = copy.deepcopy(model)
    other.reset_classifier(2)
    assert (model.options["num_classes"], other.options["num_classes"]) == (5, 2)
    assert [kind.__module__.partition(".")[0] for kind in AFFNet.__mro__[:-1]] == [
        "affnet_kernels",
        "torch",
        "affnet_kernels",
    ]


def test_a_compiled_network_is_saved(tmp_path: Path) -> None:
    model = tiny()
    torch.compile(model).save_pretrained(tmp_path)
    assert_equal(AFFNet.from_pretrained(tmp_path), model)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("config.json", None, OSError, r"expected config\.json and model\.safetensors in .*, got no config\.json$"),
        (
            "model.safetensors",
            None,
            OSError,
            r"expected config\.json and model\.safetensors in .*, got no model\.safeten",
        ),
        ("config.json", b"{", ValueError, r"from_pretrained: expected JSON, got .*config\.json: .*column"),
        ("config.json", b"\xff", ValueError, r"from_pretrained: expected JSON, got .*config\.json: .*utf-8"),
        (
            "config.json",
            b"[]",
            ValueError,
            r"expected the options of an AFFNet, got .*config\.json; save_pretrained wr",
        ),
        (
            "config.json",
            b"{}",
            ValueError,
            r"expected the options of an AFFNet, got .*config\.json; save_pretrained wr",
        ),
        ("config.json", b'{"num_classes": 3}', ValueError, r"expected the options of an AFFNet, got .*'channels'$"),
        (
            "config.json",
            b'{"num_classes": 3, "channels": [8, 8, 8, 8, 8], "hidden": 3}',
            ValueError,
            "expected the options of an AFFNet, got .*'hidden'$",
        ),
        (
            "config.json",
            b'{"num_classes": 3, "channels": [8, 8, 8, 8, 8], "norm": "rms"}',
            ValueError,
            "AFFNet: expected norm to be one of .*, got 'rms'$",
        ),
        (
            "config.json",
            b'{"num_classes": 5, "channels": [8, 8, 8, 8, 8]}',
            ValueError,
            "expected the weights of AFFNet",
        ),
        ("model.safetensors", b"", ValueError, r"got .*model\.safetensors, an empty file$"),
        (
            "model.safetensors",
            b"oh, what is this",
            ValueError,
            "expected a safetensors file, got .*, which is cut short",
        ),
    ],
)
def test_damaged_folders(
    name: str, content: bytes | None, error: type[Exception], message: str, tmp_path: Path
) -> None:
    tiny().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message) as raised:
        AFFNet.from_pretrained(tmp_path)
    assert "\n" not in str(raised.value)


def test_no_such_folder(tmp_path: Path) -> None:
    message = "from_pretrained: expected a folder, or a repository as owner/name, got .*nowhere$"
    with pytest.raises(ValueError, match=message):
        AFFNet.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(OSError, match="cannot find the requested files"):
        AFFNet.from_pretrained("me/nowhere", cache_dir=tmp_path)


def test_a_changed_network_is_not_saved(tmp_path: Path) -> None:
    model = tiny()
    model.conv_1 = torch.nn.Conv2d(3, 16, 3, 2)
    message = r"save_pretrained: expected the network that its options build, got one with 6 missing \(conv_1\.block"
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("package", ["huggingface_hub", "safetensors.torch"])
def test_without_the_packages(package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    _adapter_class.cache_clear()
    model = tiny()
    for name, call in (
        ("from_pretrained", lambda: AFFNet.from_pretrained(tmp_path)),
        ("save_pretrained", lambda: model.save_pretrained(tmp_path)),
        ("push_to_hub", lambda: model.push_to_hub("me/mine")),
    ):
        with pytest.raises(ImportError, match=rf"^{name}: .*; pip install huggingface_hub safetensors$"):
            call()


def test_importing_the_networks_imports_no_optional_package() -> None:
    script = "import sys, affnet_kernels.models; print({'huggingface_hub', 'safetensors', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
