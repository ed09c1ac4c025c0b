"""`DetectionMAP` alone, in a `MetricCollection`, and on process groups."""

import multiprocessing
import os
import pickle
import socket

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torchmetrics import MetricCollection

from zoo.data.formats.shapes import Shapes
from zoo.data.masks import Masks, encode_stack
from zoo.errors import InputError
from zoo.evaluation import DetectionMAP, GroundTruth, Predictions, evaluate
from zoo.evaluation.ground_truth import ObjectMasks
from zoo.ops.paste import paste_masks
from zoo.types import Prediction, Target

Images = list[tuple[Prediction, Target]]


def as_images(case) -> Images:
    """Prediction and target of each image, as a detector and a loader return them."""
    truth, found = case.ground_truth, case.predictions
    images = []
    for index, image_id in enumerate(truth.image_ids.tolist()):
        of_image = truth.image_index == index
        target = Target(
            boxes=torch.from_numpy(truth.boxes[of_image]).float(),
            labels=torch.from_numpy(truth.labels[of_image]),
            image_id=torch.tensor(image_id),
            iscrowd=torch.from_numpy(truth.iscrowd[of_image]),
            difficult=torch.from_numpy(truth.difficult[of_image]),
            area=torch.from_numpy(truth.areas[of_image]).float(),
        )
        images.append((found.of_image(image_id), target))
    return images


def update_in_batches(metric: DetectionMAP | MetricCollection, images: Images, batch_size: int = 3) -> None:
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        metric.update([prediction for prediction, _ in batch], [target for _, target in batch])


def as_bytes(values: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in values.items()}


def test_equals_evaluate(case):
    metric = DetectionMAP(case.ground_truth.classes)
    update_in_batches(metric, as_images(case))
    values = metric.compute()
    expected = evaluate(case.ground_truth, case.predictions)
    assert {key: float(values[key]) for key in expected.metrics} == pytest.approx(expected.metrics, abs=1e-9)
    assert float(values["AP50/class1"]) == pytest.approx(expected.per_class["class1"]["AP50"], abs=1e-9)
    assert metric.scores is not None
    assert metric.predictions is not None
    assert metric.predictions.image_ids.tolist() == sorted(metric.predictions.image_ids.tolist())
    assert len(metric.predictions) == len(case.predictions)


def test_given_ground_truth_replaces_targets(case):
    images = as_images(case)
    metric = DetectionMAP(ground_truth=case.ground_truth)
    wrong = [(prediction, {**target, "labels": target["labels"] * 0}) for prediction, target in images[:20]]
    update_in_batches(metric, wrong)  # type: ignore[arg-type]
    metric.compute()
    seen = np.array([int(target["image_id"]) for _, target in images[:20]])
    kept = np.isin(case.predictions.image_ids, seen)
    found = case.predictions
    expected = evaluate(
        case.ground_truth.of_images(seen),
        type(found)(found.image_ids[kept], found.boxes[kept], found.scores[kept], found.labels[kept]),
    )
    assert metric.scores == expected


def test_order_batch_size_and_repeated_images_do_not_change_a_bit(case):
    images = as_images(case)
    expected = DetectionMAP(case.ground_truth.classes)
    update_in_batches(expected, images)
    metric = DetectionMAP(case.ground_truth.classes)
    update_in_batches(metric, images[::-1] + images[:7], batch_size=4)
    assert as_bytes(metric.compute()) == as_bytes(expected.compute())


def test_joining_chunks_does_not_change_a_bit(case, monkeypatch):
    expected, metric = (DetectionMAP(case.ground_truth.classes) for _ in range(2))
    update_in_batches(expected, as_images(case), batch_size=1)
    monkeypatch.setattr("zoo.evaluation.metric._MOST_CHUNKS", 3)
    update_in_batches(metric, as_images(case), batch_size=1)
    assert len(metric.pred_boxes) <= 4 < len(expected.pred_boxes)
    assert as_bytes(metric.compute()) == as_bytes(expected.compute())


def test_reset_and_forward(case):
    images = as_images(case)
    metric = DetectionMAP(case.ground_truth.classes, protocols=["voc07"])
    update_in_batches(metric, images[:5])
    metric.reset()
    predictions, targets = [p for p, _ in images], [t for _, t in images]
    of_batch = metric(predictions[:20], targets[:20])
    metric(predictions[20:], targets[20:])
    whole = DetectionMAP(case.ground_truth.classes, protocols=["voc07"])
    whole.update(predictions[:20], targets[:20])
    assert as_bytes(of_batch) == as_bytes(whole.compute())
    whole.update(predictions[20:], targets[20:])
    assert as_bytes(metric.compute()) == as_bytes(whole.compute())
    assert as_bytes(pickle.loads(pickle.dumps(metric)).compute()) == as_bytes(whole.compute())


def test_in_a_collection(case):
    ours = DetectionMAP(case.ground_truth.classes, protocols=["coco"])
    collection = MetricCollection({"coco": ours, "voc": DetectionMAP(case.ground_truth.classes, protocols=["voc10"])})
    update_in_batches(collection, as_images(case))
    values = collection.compute()
    assert {"AP", "VOC10", "AP/class0", "VOC10/class0"} <= {
        key.removeprefix("coco_").removeprefix("voc_") for key in values
    }


def test_without_images_and_without_class_names(case):
    metric = DetectionMAP()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert {float(value) for value in metric.compute().values()} == {-1}
    metric.reset()
    update_in_batches(metric, as_images(case))
    assert "AP/3" in metric.compute()
    with pytest.raises(ValueError, match="0 predictions for 1 targets"):
        metric.update([], [as_images(case)[0][1]])


def work(rank: int, world_size: int, port: int, images: Images, folder: str) -> None:
    """One process of a group: every world_size-th image, padded as by Lightning's sampler, or no image."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    local = images[rank::world_size]
    if len(local) < len(images[::world_size]):
        local = [*local, images[0]]  # a padded sampler repeats the first image
    if rank == 3:  # rank 3 has no images; rank 2 has them instead
        local = []
    if rank == 2 and world_size > 3:
        local = [*local, *images[3::world_size]]
    metric = DetectionMAP([f"class{c}" for c in range(4)])
    update_in_batches(metric, local, batch_size=2)
    values = metric.compute()
    results = {"values": as_bytes(values), "scores": metric.scores, "has_predictions": metric.predictions is not None}
    # after reset the state is local again; invalid labels are an error on every rank
    metric.reset()
    update_in_batches(
        metric, [(dict(prediction, labels=prediction["labels"] + 90), target) for prediction, target in local]
    )
    try:
        metric.compute()
    except InputError as error:
        results["error"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def run_group(world_size: int, images: Images, folder: str) -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # forked from a server that has the imports done: five new processes would take a minute to start
    multiprocessing.set_forkserver_preload(["zoo.evaluation"])
    arguments = (world_size, port, images, folder)
    torch.multiprocessing.start_processes(work, arguments, nprocs=world_size, start_method="forkserver")
    return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [1, 2, 3, pytest.param(5, id="5, one of them without images")])
def test_metrics_are_bit_equal_on_any_number_of_processes(make_case, tmp_path, world_size, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    case = make_case(seed=3, num_images=16, num_classes=4, max_objects=6, max_detections=30, grid=True)
    images = as_images(case)
    single = DetectionMAP([f"class{c}" for c in range(4)])
    update_in_batches(single, images)
    expected = as_bytes(single.compute())
    for rank, result in enumerate(run_group(world_size, images, str(tmp_path))):
        assert result["values"] == expected
        assert result["scores"] == single.scores
        assert result["has_predictions"] == (rank == 0)
        assert "a detection has label 9" in result["error"]  # on every rank, so that none is left waiting


def test_masks_are_evaluated_where_both_sides_have_them():
    """Equal to `evaluate` of the pasted masks; images in another order, one without detections, one given twice."""
    table = Shapes(8, seed=0).read(with_masks=True)
    truth = GroundTruth.from_table(table)
    generator = torch.Generator().manual_seed(0)
    images, texts, kept = [], [], []
    for index in range(len(table)):
        target = table.target(index)
        count = 0 if index == 3 else len(target["labels"])
        prediction = Prediction(
            boxes=target["boxes"][:count],
            scores=torch.rand(count, generator=generator).sort(descending=True).values,
            labels=target["labels"][:count],
            masks=torch.rand(count, 28, 28, generator=generator) + 0.4,
        )
        size = int(table.heights[index]), int(table.widths[index])
        images.append((prediction, target, size))
        texts += encode_stack(paste_masks(prediction["masks"], prediction["boxes"], *size).numpy())
        kept += [index] * count
    metric = DetectionMAP(table.classes, ground_truth=truth)
    order = [5, 1, 0, 3, 2, 7, 6, 4, 5]
    for start in range(0, len(order), 4):
        batch = [images[index] for index in order[start : start + 4]]
        metric.update(*map(list, zip(*batch, strict=True)))
    values = metric.compute()
    masks = ObjectMasks(Masks.pack(texts), *(side[kept].astype(np.int64) for side in (table.heights, table.widths)))
    found = Predictions(
        image_ids=table.image_ids[kept],
        boxes=np.concatenate([prediction["boxes"].numpy() for prediction, *_ in images]),
        scores=np.concatenate([prediction["scores"].numpy() for prediction, *_ in images]),
        labels=np.concatenate([prediction["labels"].numpy() for prediction, *_ in images]),
        masks=masks,
    )
    expected = evaluate(truth, found, ["coco"], by_masks=True).metrics
    assert {key: float(values[f"mask_{key}"]) for key in expected} == pytest.approx(expected, abs=1e-12)
    assert 0.1 < expected["AP"] < 0.9
    boxes_only = DetectionMAP(table.classes, ground_truth=GroundTruth.from_table(Shapes(8, seed=0).read()))
    boxes_only.update(*map(list, zip(*images, strict=True)))
    assert "mask_AP" not in boxes_only.compute()
    with pytest.raises(ValueError, match="give the sizes of their images"):
        metric.update([images[0][0]], [images[0][1]])


def test_a_batch_without_detections_has_no_masks_and_counts() -> None:
    table = Shapes(2, seed=0).read(with_masks=True)
    metric = DetectionMAP(ground_truth=GroundTruth.from_table(table))
    none = Prediction(
        boxes=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.int64),
        masks=torch.zeros(0, 28, 28),
    )
    for index in range(2):
        metric.update([none], [table.target(index)], [(int(table.heights[index]), int(table.widths[index]))])
    assert metric.compute()["mask_AP"] == 0
