"""The detection task: it learns the scenes, in one process or several; what it saves is read by the commands."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

pytest.importorskip("pycocotools", reason="pycocotools is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from PIL import Image

from affnet_kernels.__main__ import main
from affnet_kernels.models import AFFNet, Detections, SSDLite, encode_boxes, load_checkpoint
from affnet_kernels.models.boxes import batched_nms, box_iou, corners
from affnet_kernels.models.dense_checkpoints import detector_from_checkpoint, training_facts
from affnet_kernels.models.drawings import as_picture
from affnet_kernels.training import Recipe, Settings, Summary, logs, train
from affnet_kernels.training.data.objects import Objects, Sample
from affnet_kernels.training.evaluation import evaluate
from affnet_kernels.training.processes import Processes
from affnet_kernels.training.sampling import Draw, seed_of
from affnet_kernels.training.tasks import task_of
from affnet_kernels.training.tasks.coco_map import MeanAveragePrecision
from affnet_kernels.training.tasks.detection import Detection, Evaluator
from tests.processes import run_in_processes, saved

pytestmark = pytest.mark.xdist_group("detection")

# Of the small network on scenes of the digits 0, 1 and 2 after half a minute; twice what no constant answer reaches.
LEARNT, CONSTANT = 15.0, 7.5  # mAP@50
TIMES = ("seconds", "loading", "computing")
SHORT = Recipe.load("ssdlite_scenes").replace(
    size=96,
    epochs=10,
    ema=0.9,
    rate=6e-3,
    evaluate_every=10,
    options={"train_scenes": 320, "test_scenes": 100, "digits": 3},
)
TINY = SHORT.replace(
    size=64, epochs=2, batch=8, evaluate_every=1, options={"train_scenes": 24, "test_scenes": 5, "digits": 2}
)

RECIPES_NETWORK = Detection.model  # before it is replaced


def small_network(task: Detection) -> SSDLite:
    """In place of AFFNet-ET, which learns for longer."""
    backbone = AFFNet((16, 16, 24, 48, 64), (1, 1, 1, 1, 1), 2)
    return SSDLite(backbone, len(task.classes), activation=task.options.head_activation)


@pytest.fixture(autouse=True, scope="module")
def _small_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Detection, "model", small_network)
        yield


class Run(NamedTuple):
    """A finished run."""

    folder: Path
    summary: Summary


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("detection") / "run"
    return Run(folder, train(SHORT, Settings(folder, progress=False)))


# it learns


def test_it_learns_what_no_constant_answer_reaches(short_run: Run) -> None:
    assert short_run.summary.metric == "map50"
    task = task_of(SHORT)
    constant = [constant_precision(task, boxes) for boxes in (most_frequent_boxes(task), mean_box(task))]
    assert max(constant) < CONSTANT
    assert short_run.summary.best > LEARNT


def training_objects(task: Detection) -> list[Sample]:
    data = task.train_data()
    size = (SHORT.size, SHORT.size)
    return [data[Draw(index, seed_of(index), size)] for index in range(len(data))]  # type: ignore[arg-type]


def mean_box(task: Detection) -> Detections:
    """The mean box with the most common class."""
    samples = training_objects(task)
    labels = torch.cat([sample.labels for sample in samples])
    box = torch.cat([sample.boxes for sample in samples]).mean(dim=0, keepdim=True)
    return Detections(box, torch.ones(1), labels.bincount().argmax()[None])


def most_frequent_boxes(task: Detection) -> Detections:
    """For each class the 100 boxes that are right most often, by how often they are: what COCO's limit allows."""
    samples = training_objects(task)
    centre = (torch.arange(16) + 0.5) / 16
    grid = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), dim=-1).view(-1, 2)
    boxes = torch.cat([corners(torch.cat((grid, torch.full_like(grid, side)), 1)) for side in (0.22, 0.27, 0.33, 0.4)])
    answers = []
    for label in range(1, len(task.classes)):
        right = torch.zeros(len(boxes))
        for sample in samples:
            right += (box_iou(boxes, sample.boxes[sample.labels == label]) >= 0.5).any(dim=1)
        keep = batched_nms(boxes, right, torch.zeros(len(boxes)), 0.5)[:100]
        answers.append((boxes[keep], right[keep] / len(samples), torch.full((len(keep),), label)))
    return Detections(*(torch.cat(column) for column in zip(*answers, strict=True)))


def constant_precision(task: Detection, answer: Detections) -> float:
    precision, data = MeanAveragePrecision(), task.test_data()
    for index in range(len(data)):  # type: ignore[arg-type]
        sample = data[Draw(index, 0, (SHORT.size, SHORT.size))]
        precision.update(index, answer._replace(boxes=answer.boxes * SHORT.size), sample.objects)
    return precision.compute(lambda part: [part])["map50"]


# what it saves


def test_the_weights_load_and_are_as_good_as_said(short_run: Run) -> None:
    best = short_run.folder / "best.pt"
    assert training_facts(best).classes == ["background", "0", "1", "2"]
    detector = detector_from_checkpoint(best)
    metrics, skipped = evaluate(task_of(SHORT), SHORT, detector)
    assert metrics["map50"] == pytest.approx(short_run.summary.best, abs=1e-3)
    assert skipped == []
    other = small_network(task_of(SHORT))
    load_checkpoint(other, best)
    torch.testing.assert_close(other.state_dict(), detector.state_dict(), rtol=0, atol=0)


def test_the_command_finds_what_the_network_finds(
    short_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = task_of(SHORT).test_data()[Draw(1, 0, (SHORT.size, SHORT.size))]
    picture, best = as_picture(sample.image), short_run.folder / "best.pt"
    picture.save(tmp_path / "scene.png")
    out = tmp_path / "boxes.png"
    arguments = [str(tmp_path / "scene.png"), "--checkpoint", str(best), "--min-score", "0.05", "--out", str(out)]
    assert main(["detect", *arguments]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()[:-1]]
    with torch.no_grad():
        scores, offsets = detector_from_checkpoint(best)(sample.image[None])
    (found,) = SSDLite.detections(scores, offsets, SHORT.size, min_score=0.05)
    assert found.labels.tolist() == [int(row[2]) + 1 for row in printed] != []
    got = torch.tensor([[float(value) for value in row[3:]] for row in printed])
    torch.testing.assert_close(got, found.boxes * SHORT.size, rtol=0, atol=1.0)
    assert Image.open(out).size == picture.size


def test_the_onnx_file_of_a_trained_detector_gives_the_same(short_run: Run, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    from affnet_kernels.export import export_onnx

    detector = detector_from_checkpoint(short_run.folder / "best.pt")
    assert export_onnx(detector, tmp_path / "detector.onnx", size=SHORT.size).error <= 1e-4


def test_predictions_are_drawn_at_the_end(short_run: Run) -> None:
    picture = Image.open(short_run.folder / "predictions.png")
    assert picture.size == (4 * 320, 2 * 320)
    plain = [as_picture(task_of(SHORT).test_data()[Draw(index, 0, (96, 96))].image) for index in range(8)]
    cells = [picture.crop((320 * x, 320 * y, 320 * (x + 1), 320 * (y + 1))) for y in range(2) for x in range(4)]
    drawn = [cell.tobytes() != image.resize((320, 320)).tobytes() for cell, image in zip(cells, plain, strict=True)]
    assert any(drawn)


# resuming, processes, precision


def last_state(out: Path) -> dict[str, Any]:
    """All values of the run's last checkpoint by their places in it, but for times."""
    leaves, _ = tree_flatten_with_path(saved(out))
    return {place: leaf for path, leaf in leaves if (place := keystr(path)).strip("[']") not in TIMES}


def test_a_run_cut_short_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(TINY, Settings(tmp_path / "whole", progress=False))
    steps, loss = 0, Detection.loss

    def fail(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 5:  # the second of the second epoch's three
            raise KeyboardInterrupt
        return loss(*arguments)

    cut = Settings(tmp_path / "cut", save_every=1, progress=False)
    monkeypatch.setattr(Detection, "loss", fail)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, cut)
    monkeypatch.setattr(Detection, "loss", loss)
    resumed = train(TINY, Settings(tmp_path / "cut", resume=True, progress=False))
    assert (resumed.best, resumed.best_epoch, resumed.images) == (whole.best, whole.best_epoch, whole.images)
    got, expected = last_state(tmp_path / "cut"), last_state(tmp_path / "whole")
    assert got.keys() == expected.keys()
    assert any("ssd_heads" in place for place in expected)
    for place, value in expected.items():
        assert torch.equal(got[place], value) if isinstance(value, Tensor) else got[place] == value, place


def train_in_a_process(processes: Processes, recipe: Recipe, out: Path) -> None:
    Detection.model = small_network  # type: ignore[method-assign]
    train(recipe, Settings(out, log_every=1, progress=False), processes)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Though their shares of a step have other numbers of anchors with a box."""
    recipe = TINY.replace(epochs=1)
    train(recipe, Settings(tmp_path / "one", log_every=1, progress=False))
    run_in_processes(2, train_in_a_process, tmp_path / "results", recipe, tmp_path / "two")
    one, two = (logs.read_rows(tmp_path / name / logs.STEPS) for name in ("one", "two"))
    for name in ("loss", "gradient norm"):
        assert float(two[0][name]) == pytest.approx(float(one[0][name]), rel=1e-5)
    # Later steps differ by the rounding that AdamW's division by small gradients makes larger.
    assert [float(row["loss"]) for row in two] == pytest.approx([float(row["loss"]) for row in one], rel=1e-2)


def evaluate_in_a_process(processes: Processes, recipe: Recipe, best: Path) -> dict[str, float]:
    return evaluate(task_of(recipe), recipe, detector_from_checkpoint(best), processes)[0]


@pytest.mark.parametrize("scenes", [20, 1])
def test_two_processes_evaluate_as_one(scenes: int, short_run: Run, tmp_path: Path) -> None:
    """With one image, the first of them has none."""
    recipe, best = SHORT.replace(options={"test_scenes": scenes}), short_run.folder / "best.pt"
    expected = evaluate_in_a_process(Processes(), recipe, best)
    assert expected["mar100"] > 0
    first, second = run_in_processes(2, evaluate_in_a_process, tmp_path / "results", recipe, best)
    assert first == second == pytest.approx(expected)


def test_bf16_trains(tmp_path: Path) -> None:
    summary = train(TINY.replace(amp="bf16"), Settings(tmp_path / "run", progress=False))
    assert summary.images == 48
    state = detector_from_checkpoint(tmp_path / "run" / "best.pt").state_dict()
    assert all(value.isfinite().all() for value in state.values())


def test_batches_without_objects_change_nothing_but_decay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("affnet_kernels.training.data.scenes.EMPTY", 1.0)
    recipe = TINY.replace(epochs=1, ema=0.0, weight_decay=0.0)
    train(recipe, Settings(tmp_path / "run", progress=False))
    torch.manual_seed(recipe.seed)
    initial = dict(small_network(task_of(recipe)).named_parameters())
    state = detector_from_checkpoint(tmp_path / "run" / "best.pt").state_dict()
    for name, value in initial.items():
        assert torch.equal(state[name], value), name


# the parts of the task


def sample(boxes: list[list[float]], number: int, size: tuple[int, int] = (100, 200)) -> Sample:
    """An image of 64 x 64 with boxes as parts of it, of class 1."""
    parts = torch.tensor(boxes).view(-1, 4)
    height, width = size
    pixels = parts * torch.tensor([width, height, width, height])
    labels = torch.ones(len(parts), dtype=torch.int64)
    areas = (pixels[:, 2:] - pixels[:, :2]).prod(dim=1)
    return Sample(torch.rand(3, 64, 64), parts, labels, number, size, Objects(pixels, labels, labels < 1, areas))


def test_a_batch(tmp_path: Path) -> None:
    task = task_of(TINY)
    samples = [sample([[0.1, 0.2, 0.5, 0.6]], 4), sample([], 9, (50, 30))]
    images, targets = task.collate(samples)
    assert images.shape == (2, 3, 64, 64)
    assert [len(boxes) for boxes in targets.boxes] == [1, 0]
    assert (targets.size, targets.numbers) == ((64, 64), [4, 9])
    assert targets.scales.tolist() == [[200, 100, 200, 100], [30, 50, 30, 50]]


def test_the_evaluation_is_in_the_files_pixels() -> None:
    """Predictions that are the boxes, as parts of the sides: right in images of any size."""
    task = task_of(TINY)
    samples = [sample([[0.1, 0.2, 0.5, 0.6]], 0), sample([[0.5, 0.1, 0.9, 0.8]], 1, (30, 400))]
    _, targets = task.collate(samples)
    anchors = SSDLite.anchors(64)
    scores = torch.zeros(2, len(anchors), 3)
    scores[..., 0] = 10.0
    offsets = torch.zeros(2, len(anchors), 4)
    for image, boxes in enumerate(targets.boxes):
        scores[image, 100, 1] = 20.0
        offsets[image, 100] = encode_boxes(boxes[0], anchors[100])
    evaluator = Evaluator()
    evaluator.update((scores, offsets), targets)
    assert evaluator.compute(lambda part: [part])["map"] == pytest.approx(100)
    moved = copy.deepcopy(offsets)
    moved[1, 100, 0] += 20.0
    evaluator.update((scores, moved), targets)
    assert evaluator.compute(lambda part: [part])["map"] == pytest.approx(50, abs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenes": 3}, r"detection: expected options among \['head_activation', .*\], got scenes"),
        ({"digits": 2.5}, r"detection: expected option digits to be of type int, got 2\.5"),
        ({"digits": 11}, "Scenes: expected classes from 1 to 10, got 11"),
        ({"head_activation": "elu"}, r"SSDLite: expected activation to be one of .*, got 'elu'"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    recipe = TINY.replace(options=options)
    with pytest.raises(ValueError, match=f"^{message}$"):
        task_of(recipe).model()


@pytest.mark.parametrize("name", ["label_smoothing", "drop_rate"])
def test_what_ssd_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^detection: expected {name} 0, which SSD does not have, got 0\.1$"):
        task_of(TINY.replace(**{name: 0.1}))


def test_the_recipe_builds_its_network() -> None:
    recipe = Recipe.load("ssdlite_scenes")
    network = RECIPES_NETWORK(task_of(recipe))
    assert network.num_classes == 11
    assert network.encoder.options["activation"] == recipe.activation == "silu"
