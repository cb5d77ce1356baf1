"""Detectors: what their parts compute, that they learn rectangles, go on bit for bit, and draw what they found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from program import dlcli, events_of
from safetensors.torch import load_file
from torch import nn

from dlcli.config import compose_command
from dlcli.config.folders import packaged_conf
from dlcli.datasets.boxes import BoxBatch, made_up, records
from dlcli.errors import ConfigError
from dlcli.inference.predict import as_table, predictor
from dlcli.models import yolo
from dlcli.models.faster_rcnn import FasterRCNN
from dlcli.models.yolo import Yolo
from dlcli.tasks.detection import Detection
from dlcli.training import build, checks
from dlcli.training.allow_list import Builder

SETTINGS = {"image_shape": [3, 64, 96], "num_classes": 3, "mean": [0.5], "std": [0.25]}
SMALL = {"num_classes": 3, "image_shape": [3, 64, 96], "widths": [8, 16, 32], "fpn_channels": 16}


def rectangles(num_images: int, seed: int) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Up to three rectangles in each image: red ones are of class 0, blue ones of class 1."""
    random = np.random.default_rng(seed)
    images = random.integers(90, 130, (num_images, 3, 64, 64)).astype(np.uint8)
    boxes, labels = [], []
    for image in images:
        mine = []
        for _ in range(int(random.integers(1, 4))):
            x0, y0 = random.integers(0, 40, 2)
            width, height = random.integers(12, 24, 2)
            mine.append((x0, y0, min(64, x0 + width), min(64, y0 + height)))
        classes = random.integers(0, 2, len(mine))
        for (x0, y0, x1, y1), label in zip(mine, classes, strict=True):
            image[:, y0:y1, x0:x1] = np.array([[255, 0, 0], [0, 0, 255]][label])[:, None, None]
        boxes.append(np.array(mine, dtype=np.float32))
        labels.append(classes)
    return images, boxes, labels


def batch_of(num_images: int, seed: int) -> BoxBatch:
    return records(*rectangles(num_images, seed), mean=[0.5], std=[0.25]).batch(torch.arange(num_images))


# --------------------------------------------------------------------------------------------------------------- parts


def test_overlaps_are_torchvisions() -> None:
    from torchvision.ops import box_iou, generalized_box_iou

    torch.manual_seed(0)
    corners = torch.rand(2, 5, 2) * 20
    a_BM4 = torch.cat([corners, corners + torch.rand(2, 5, 2) * 20], -1)
    b_BA4 = a_BM4.flip(1) + 1
    for a_M4, b_A4, iou_MA, giou_M in zip(
        a_BM4, b_BA4, yolo.pairwise_iou(a_BM4, b_BA4), yolo.generalized_iou(a_BM4, b_BA4), strict=True
    ):
        torch.testing.assert_close(iou_MA, box_iou(a_M4, b_A4))
        torch.testing.assert_close(giou_M, generalized_box_iou(a_M4, b_A4).diagonal())


def test_cells_answer_for_boxes_they_lie_in() -> None:
    """A large box has at most ten cells, one smaller than a cell the nearest, no box none."""
    centres_A2 = yolo.cell_centres(8, 8, 8, torch.device("cpu"))
    boxes = torch.tensor([[[0.0, 0, 40, 40], [58, 58, 60, 60], [0, 0, 0, 0]]])
    labels = torch.tensor([[1, 0, -1]])
    predicted = torch.cat([centres_A2 - 8, centres_A2 + 8], 1)[None]
    box_A, score_A = (t[0] for t in yolo.assign(torch.zeros(1, 64, 2), predicted, centres_A2, boxes, labels))
    answering = score_A > 0
    assert [int((box_A[answering] == m).sum()) for m in range(3)] == [10, 1, 0]
    assert bool((centres_A2[answering & (box_A == 0)] < 40).all())
    assert centres_A2[answering & (box_A == 1)].tolist() == [[60.0, 60.0]]
    assert score_A.max() == pytest.approx(16 * 16 / 1600)  # the best cell should give its overlap


DETECTORS: tuple[Callable[[], nn.Module], ...] = (
    lambda: Yolo(**SMALL),  # type: ignore[arg-type]
    lambda: FasterRCNN(num_classes=3, image_shape=[3, 64, 96]),
)


@pytest.mark.parametrize("build", DETECTORS, ids=("yolo", "faster_rcnn"))
def test_every_detector_takes_images_with_and_without_boxes(build: Callable[[], nn.Module]) -> None:
    """Losses are finite in training and evaluation, and every part gets a gradient; answers lie in the image."""
    torch.manual_seed(0)
    detector = build()
    batch = made_up(SETTINGS, 2).batch(torch.arange(2))
    task = Detection(detector)
    for boxes, labels in (
        (batch.boxes, batch.labels),
        (batch.boxes, batch.labels.masked_fill(torch.tensor([[True], [False]]), -1)),
        (batch.boxes[:, :0], batch.labels[:, :0]),
    ):
        loss, values = task.train().loss(batch._replace(boxes=boxes, labels=labels), "model")
        assert bool(loss.isfinite()) and len(values) >= 3
    loss, _ = task.loss(batch, "model")
    loss.backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)
    before = {name: buffer.clone() for name, buffer in detector.named_buffers()}
    with torch.no_grad():
        held_out, _ = task.eval().loss(batch, "model")
    assert bool(held_out.isfinite()) and not task.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in detector.named_buffers())
    for found, scores, classes in task.detect(batch.images):
        assert len(found) == len(scores) == len(classes) <= 100
        assert bool((found >= 0).all()) and bool((found <= torch.tensor([96.0, 64, 96, 64])).all())
        assert bool((scores.diff() <= 0).all()) and set(classes.tolist()) <= {0, 1, 2}


def test_faster_rcnn_has_the_names_of_torchvisions_weights() -> None:
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    with torch.device("meta"):
        ours = FasterRCNN(num_classes=90, image_shape=[3, 64, 64], norm="frozen").state_dict()
        theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    theirs = {name: t for name, t in theirs.items() if not name.endswith("num_batches_tracked")}
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}


def test_the_anchors_of_each_coarser_map_are_twice_as_large() -> None:
    with torch.device("meta"):
        network = FasterRCNN(num_classes=1, image_shape=[3, 64, 64], smallest_anchor=12)
    found = [anchors_A4[:, 2:] - anchors_A4[:, :2] for anchors_A4 in network.rpn.anchor_generator.cell_anchors]
    sides = [sizes_A2.prod(1).sqrt().tolist() for sizes_A2 in found]
    assert sides == [[pytest.approx(12 * 2**level, rel=0.1)] * 3 for level in range(5)]


def test_only_the_last_layers_of_a_backbone_are_trained() -> None:
    with torch.device("meta"):
        network = FasterRCNN(num_classes=1, image_shape=[1, 64, 64], trainable_layers=1)
    trained = {name.split(".")[1] for name, p in network.backbone.named_parameters() if p.requires_grad}
    assert "layer4" in trained and not trained & {"conv1", "layer1", "layer2", "layer3"}


# ------------------------------------------------------------------------------------------------------------ learning


@pytest.mark.parametrize(
    ("shape", "min_size", "small"),
    [
        ([3, 240, 320], 32, [3, 48, 64]),
        ([3, 320, 240], 32, [3, 64, 48]),
        ([3, 640, 640], 32, [3, 32, 32]),
        ([3, 640, 640], 100, [3, 128, 128]),
        ([1, 500, 2000], 32, [1, 52, 80]),
        ([3, 64, 1024], 64, [3, 64, 96]),
        ([3, 32, 32], 32, None),
    ],
)
def test_shapes_are_tried_on_the_smallest_pictures_that_tell(
    shape: list[int], min_size: int, small: list[int] | None
) -> None:
    node = {"image_shape": shape, "num_classes": 3}
    tree = {"dataset": {**node, "facts": {"gives": "boxes"}}, "model": {**node, "facts": {"min_size": min_size}}}
    found = checks.smaller_pictures(tree)
    assert (found and found["dataset"]["image_shape"], found and found["model"]["image_shape"]) == (small, small)


@pytest.mark.parametrize("words", [["model=yolo"], ["model=faster_rcnn", "model.proposals=20"]])
def test_a_trial_on_small_pictures_says_what_one_on_real_ones_does(words: list[str]) -> None:
    tree = compose_command(["blood_cells", *words, "dataset.image_shape=[3,128,160]"]).tree
    rebuild = partial(build.build_meta_task, Builder.for_search([packaged_conf()]))
    real, small = (checks.check_shapes(rebuild(tree), tree, how) for how in (None, rebuild))
    assert real == small > 0
    tree["dataset"]["eval_batch_size"] = 4
    assert checks.check_shapes(rebuild(tree), tree, rebuild) == 0


def test_a_network_for_other_classes_or_channels_is_refused_with_the_real_size() -> None:
    tree = compose_command(["blood_cells", "dataset.image_shape=[3,128,160]"]).tree
    rebuild = partial(build.build_meta_task, Builder.for_search([packaged_conf()]))
    for setting, wrong in (("num_classes", 1), ("image_shape", [1, 128, 160])):
        misfit = {**tree, "model": {**tree["model"], setting: wrong}}
        with pytest.raises(ConfigError, match="does not fit images of 3x128x160 and 3 classes"):
            checks.check_shapes(rebuild(misfit), misfit, rebuild)


def test_a_detector_that_small_pictures_do_not_suit_is_tried_on_real_ones() -> None:
    """Its YAML says that it takes any size, which is wrong; with the size it is used for it is right."""
    tree = compose_command(["blood_cells", "dataset.image_shape=[3,128,160]"]).tree
    rebuild = partial(build.build_meta_task, Builder.for_search([packaged_conf()]))
    meta, sizes = rebuild(tree), []

    def refuse(small: Any) -> Any:
        sizes.append(small["dataset"]["image_shape"])
        raise ConfigError("too small for this network")

    assert checks.check_shapes(meta, tree, refuse) == checks.check_shapes(meta, tree)
    assert sizes == [[3, 32, 64]]


def test_yolo_learns_rectangles() -> None:
    """In 120 steps; before, and with a detector that says the same everywhere, next to nothing is right."""
    torch.manual_seed(0)
    task = Detection(Yolo(num_classes=2, image_shape=[3, 64, 64], widths=[8, 16, 32], fpn_channels=16))
    held_out = [batch_of(32, seed=1)]
    task.eval()
    assert task.evaluate(held_out)["map50"] < 0.05
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    examples = records(*rectangles(64, seed=0), mean=[0.5], std=[0.25])
    task.train()
    for step in range(120):
        rows = torch.randperm(64, generator=torch.Generator().manual_seed(step))[:16]
        loss, _ = task.loss(examples.batch(rows), "model")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 120)
    task.eval()
    scores = task.evaluate(held_out)
    assert scores["map50"] > 0.6 and scores["map50"] > scores["map"] > 0.2


def write_images(folder: Path, num_images: int = 12) -> Path:
    """The rectangles as a COCO file."""
    images, boxes, labels = rectangles(num_images, seed=0)
    annotations, listed = [], []
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
        listed.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        for (x0, y0, x1, y1), label in zip(boxes[i].tolist(), labels[i].tolist(), strict=True):
            box = {"image_id": i, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            annotations.append({"id": len(annotations)} | box)
    classes = [{"id": 0, "name": "red"}, {"id": 1, "name": "blue"}]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": classes}))
    return path


TRAIN = (
    "train", "coco", "dataset.path=instances.json", "dataset.image_shape=[3,64,64]", "model.widths=[8,16,32]",
    "model.fpn_channels=16", "dataset.batch_size=4", "dataset.val_size=2", "trainer.save_every=1",
    "trainer.keep_checkpoints=9",
    "tracker=none", "runtime.threads=1", "runtime.device=cpu", "runtime.channels_last=false", "runtime.precision=fp32",
    "--json",
)  # fmt: skip


def test_a_run_on_ones_own_boxes_resumes_bit_for_bit_and_draws(tmp_path: Path) -> None:
    """Boxes are augmented too; from the middle of an epoch on. What is found is drawn, a bad file told."""
    from dlcli.runs.events import Silent
    from dlcli.runs.folder import RunFolder
    from dlcli.training import start

    write_images(tmp_path)
    done = dlcli(*TRAIN, "trainer.max_steps=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = events_of(done.stdout)[-1]
    run = Path(last["run"])
    assert {"test/map50", "test/map"} <= set(last["metrics"])
    copy = tmp_path / "resumed" / "coco" / run.name
    shutil.copytree(run, copy, symlinks=True)
    for path in [copy / "summary.json", *(copy / "checkpoints").glob("step-0000000[3-9]")]:
        path.unlink() if path.is_file() else shutil.rmtree(path)
    for name in ("last", "best"):
        (copy / "checkpoints" / name).unlink(missing_ok=True)
    (copy / "checkpoints" / "last").symlink_to("step-00000002")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert start.resume(RunFolder(copy), (), display=Silent(), search=[packaged_conf()]) == 0
    for part in ("model.safetensors", "state.safetensors"):
        straight, again = (load_file(path / "checkpoints" / "step-00000005" / part) for path in (run, copy))
        assert all(tensor.equal(again[name]) for name, tensor in straight.items()), part

    (tmp_path / "bad.png").write_bytes(b"no picture")
    asked = dlcli("predict", "0.png", "bad.png", "--run", str(run), "--save", "out", "--json", cwd=tmp_path)
    assert asked.returncode == 3, asked.stderr
    good, bad = (json.loads(line) for line in asked.stdout.splitlines())
    names, rows = as_table(predictor("boxes"), [good, bad])
    assert (names[0], names[-1]) == ("image", "error")
    assert rows[0][-1] is None and rows[1][-1] == bad["error"].removesuffix(".")
    assert "is not an image" in bad["error"] and all(cell is None for cell in rows[1][1:-1])
    with Image.open(tmp_path / good["picture"]) as picture:
        assert picture.size == (64, 64)

    def ask(threshold: str, *words: str) -> str:
        return dlcli("predict", "0.png", "--run", str(run), "--threshold", threshold, *words, cwd=tmp_path).stdout

    everything, nothing = json.loads(ask("0", "--json")), json.loads(ask("1", "--json"))
    best, count = everything["objects"][0], len(everything["objects"])
    assert everything["weaker"] == {"count": 0, "surest": None} and nothing["objects"] == []
    assert nothing["weaker"] == {"count": count, "surest": {"class": best["class"], "score": best["score"]}}
    assert len(good["objects"]) == sum(one["score"] >= 0.4 for one in everything["objects"]), "what is told unasked"
    told = f"nothing from 100 %; {count} weaker, the best {best['class']} {100 * best['score']:.0f} %"
    assert told in ask("1")


def test_what_is_found_is_drawn_where_it_is() -> None:
    from dlcli.inference.predict.boxes import draw_boxes

    for size in ((40, 30), (640, 480), (3000, 2000)):
        picture = Image.new("RGB", size)
        box = [0.25 * size[0], 0.5 * size[1], 0.75 * size[0], 0.75 * size[1]]
        objects: list[dict[str, Any]] = [
            {"class": "red", "score": 0.9, "box": box},
            {"class": "blue", "score": 0.5, "box": [0.0, 0.0, 5.0, 5.0]},
        ]
        draw_boxes(picture, objects, ("red", "blue"))
        pixels = np.asarray(picture).astype(int)
        frame = (np.abs(pixels - [0xF3, 0xC3, 0x00]) <= 1).all(-1)  # the first class's colour
        rows, columns = frame.nonzero()
        assert abs(columns.min() - box[0]) <= 1 and abs(rows.max() - box[3]) <= 1
        assert (pixels.max(-1) > 0).mean() < 0.5  # most of the picture is to be seen


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.slow
def test_blood_cells_are_found_after_four_epochs(data_root: Path, tmp_path: Path) -> None:
    """From fresh weights, in about 50 CPU-seconds; a detector that guesses is at 0.01 or less."""
    words = ("trainer.epochs=4", "tracker=none", "runtime.threads=1", "runtime.device=cpu", "--json")
    done = dlcli("train", "blood_cells", *words, cwd=tmp_path, timeout=600, DLCLI_DATA=str(data_root))
    assert done.returncode == 0, done.stderr
    assert events_of(done.stdout)[-1]["metrics"]["test/map50"] > 0.2
