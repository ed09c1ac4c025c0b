"""COCO and VOC mAP as a torchmetrics `Metric`, exact on any number of processes; of masks, too, where there are any."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from jaxtyping import Int64
from torch import Tensor
from torchmetrics import Metric

from zoo.data.masks import RUNS, Masks
from zoo.evaluation.coco import Engine
from zoo.evaluation.ground_truth import GroundTruth, ObjectMasks, ragged_indices
from zoo.evaluation.predictions import Predictions, encode_masks
from zoo.evaluation.scores import PROTOCOLS, Protocol, Scores, evaluate_boxes_and_masks
from zoo.ops.distributed import run_on_rank_zero
from zoo.types import Prediction, Target


class DetectionMAP(Metric):
    """COCO's and VOC's metrics over all images passed to `update`.

    `update` appends columns on their device without waiting for it. `compute` gathers the columns of all processes on
    rank 0, sorts images by id, drops images that a padded sampler repeated (the first copy is kept), evaluates once,
    and broadcasts the result. So the metrics are bit-equal on any number of processes.

    Args:
        classes: class names by label; None uses the labels as names.
        protocols: any of "coco", "voc07" and "voc10".
        engine: library for COCO's metrics: "hotcoco", or the reference, "pycocotools".
        ground_truth: of the data set, if available; only the image ids of the targets are then used. Metrics then use
            the boxes of the annotation file, which are f64 and not clipped to the image.
        process_group: processes that share the images; None means all.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    image_ids: list[Tensor]
    pred_counts: list[Tensor]
    pred_boxes: list[Tensor]
    pred_scores: list[Tensor]
    pred_labels: list[Tensor]
    pred_mask_lengths: list[Tensor]
    pred_mask_bytes: list[Tensor]
    heights: list[Tensor]
    widths: list[Tensor]
    gt_counts: list[Tensor]
    gt_boxes: list[Tensor]
    gt_areas: list[Tensor]
    gt_labels: list[Tensor]
    gt_iscrowd: list[Tensor]
    gt_difficult: list[Tensor]

    def __init__(
        self,
        classes: Sequence[str] | None = None,
        protocols: Sequence[Protocol] = PROTOCOLS,
        engine: Engine = "hotcoco",
        ground_truth: GroundTruth | None = None,
        process_group: Any | None = None,
    ) -> None:
        super().__init__(process_group=process_group, dist_sync_fn=_gather_on_rank_zero)
        self.classes = None if classes is None else tuple(classes)
        self.protocols = tuple(protocols)
        self.engine: Engine = engine
        self.ground_truth = ground_truth
        self.scores: Scores | None = None  # of the last `compute`, on every rank
        self.predictions: Predictions | None = None  # of the last `compute`, of all processes, on rank 0 only
        for name in _STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        preds: Sequence[Prediction],
        target: Sequence[Target],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Add predictions and targets of a batch of images.

        Args:
            preds: of each image.
            target: of each image.
            sizes: (height, width) of each image, for predictions with masks, which are kept as run lengths.

        Raises:
            ValueError: not as many predictions as targets, or masks without sizes.
        """
        if len(preds) != len(target):
            raise ValueError(f"{len(preds)} predictions for {len(target)} targets")
        if not target:
            return
        if len(self.image_ids) > _MOST_CHUNKS:
            self._join_chunks()
        self.image_ids.append(torch.stack([item["image_id"].reshape(()) for item in target]))
        self.pred_counts.append(torch.tensor([len(item["scores"]) for item in preds]))
        self.pred_boxes.append(torch.cat([item["boxes"] for item in preds]).detach().float())
        self.pred_scores.append(torch.cat([item["scores"] for item in preds]).detach().float())
        self.pred_labels.append(torch.cat([item["labels"] for item in preds]))
        if "masks" in preds[0]:
            if sizes is None:
                raise ValueError("predictions have masks: give the sizes of their images")
            self._add_masks(preds, sizes)
        self.gt_counts.append(torch.tensor([len(item["labels"]) for item in target]))
        self.gt_boxes.append(torch.cat([item["boxes"] for item in target]))
        self.gt_areas.append(torch.cat([item["area"] for item in target]))
        self.gt_labels.append(torch.cat([item["labels"] for item in target]))
        self.gt_iscrowd.append(torch.cat([item["iscrowd"] for item in target]))
        self.gt_difficult.append(torch.cat([item["difficult"] for item in target]))

    def _join_chunks(self) -> None:
        """Join the chunks of each state: when many small ones are freed, their memory stays with the process."""
        for name in _STATES:  # one at a time, so that only one is in memory twice
            chunks = getattr(self, name)
            if isinstance(chunks, list) and len(chunks) > 1:
                setattr(self, name, [torch.cat(chunks)])

    def _add_masks(self, preds: Sequence[Prediction], sizes: Sequence[tuple[int, int]]) -> None:
        texts = [text for item, size in zip(preds, sizes, strict=True) for text in encode_masks(item, *size)]
        self.pred_mask_lengths.append(torch.tensor([len(text) for text in texts], dtype=torch.int64))
        self.pred_mask_bytes.append(torch.from_numpy(np.frombuffer(b"".join(texts), np.uint8).copy()))
        self.heights.append(torch.tensor([height for height, _ in sizes]))
        self.widths.append(torch.tensor([width for _, width in sizes]))

    def compute(self) -> dict[str, Tensor]:
        """Metrics over all images of all processes.

        Returns:
            f64 scalars by name: those of `Scores.metrics`, and `AP/<class>` and so on for each class.

        Raises:
            InputError: see `zoo.evaluation.evaluate`; on every rank.
        """
        self.predictions = None
        if not self._is_synced:
            self.scores = self._evaluate()
        else:
            self.scores = run_on_rank_zero(self._evaluate, self.process_group)
        assert self.scores is not None
        values = dict(self.scores.metrics)
        for name, of_class in self.scores.per_class.items():
            values |= {f"{key}/{name}": value for key, value in of_class.items()}
        return {key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()}

    def _evaluate(self) -> Scores:
        self._join_chunks()
        image_ids = _column(self.image_ids, np.int64)
        _, first = np.unique(image_ids, return_index=True)
        pred_counts = _column(self.pred_counts, np.int64)
        in_order = np.array_equal(first, np.arange(len(image_ids)))
        take = slice(None) if in_order else ragged_indices(pred_counts, first)  # a slice copies nothing
        self.predictions = Predictions(
            image_ids=np.repeat(image_ids[first], pred_counts[first]),
            boxes=_column(self.pred_boxes, np.float32, 4)[take],
            scores=_column(self.pred_scores, np.float32)[take],
            labels=_column(self.pred_labels, np.int64)[take],
            masks=self._masks(pred_counts, take),
        )
        if self.ground_truth is not None:
            ground_truth = self.ground_truth.of_images(image_ids)
        else:
            pred_labels = self.predictions.labels
            gt_labels = _column(self.gt_labels, np.int64)
            num_classes = max(pred_labels.max(initial=-1), gt_labels.max(initial=-1)) + 1
            ground_truth = GroundTruth.from_counts(
                classes=self.classes if self.classes is not None else tuple(map(str, range(num_classes))),
                image_ids=image_ids,
                counts=_column(self.gt_counts, np.int64),
                boxes=_column(self.gt_boxes, np.float32, 4),
                areas=_column(self.gt_areas, np.float32),
                labels=gt_labels,
                iscrowd=_column(self.gt_iscrowd, np.bool_),
                difficult=_column(self.gt_difficult, np.bool_),
            )
        return evaluate_boxes_and_masks(ground_truth, self.predictions, self.protocols, self.engine)

    def _masks(self, pred_counts: Int64[np.ndarray, " N"], take: slice | Int64[np.ndarray, " D"]) -> ObjectMasks | None:
        """Masks of the detections `take`; None without any."""
        lengths = _column(self.pred_mask_lengths, np.int64)
        if not len(self.heights):
            return None
        kinds = np.full(len(lengths), RUNS, np.int8)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        masks = Masks(kinds, starts, _column(self.pred_mask_bytes, np.uint8))
        sizes = (np.repeat(_column(side, np.int64), pred_counts) for side in (self.heights, self.widths))
        packed = ObjectMasks(masks, *sizes)
        return packed if isinstance(take, slice) else packed.select(take)


_MOST_CHUNKS = 1024  # of COCO val2017 in batches of 8 there are 625, which are joined once, at the end
_PREDICTION_COLUMNS = ("pred_counts", "pred_boxes", "pred_scores", "pred_labels")
_MASK_COLUMNS = ("pred_mask_lengths", "pred_mask_bytes", "heights", "widths")
_TARGET_COLUMNS = ("gt_counts", "gt_boxes", "gt_areas", "gt_labels", "gt_iscrowd", "gt_difficult")
_STATES = ("image_ids", *_PREDICTION_COLUMNS, *_MASK_COLUMNS, *_TARGET_COLUMNS)


def _column(state: list[Tensor] | Tensor, dtype: type[np.generic], *shape: int) -> np.ndarray:
    """A state as one array; it is a list of chunks before synchronisation and one tensor afterwards."""
    chunks = [state] if isinstance(state, Tensor) else state
    joined = (chunks[0] if len(chunks) == 1 else torch.cat(chunks)).cpu().numpy() if chunks else np.zeros(0)
    return joined.astype(dtype, copy=False).reshape(-1, *shape)


def _gather_on_rank_zero(state: Tensor, group: Any | None = None) -> list[Tensor]:
    """Gather a state on rank 0 of the group, which evaluates; the other ranks keep their own.

    A process without images has an empty f32 tensor for every state, which is left out so that ids stay integers.
    """
    is_rank_zero = torch.distributed.get_rank(group) == 0
    parts: list[Any] | None = [None] * torch.distributed.get_world_size(group) if is_rank_zero else None
    torch.distributed.gather_object(state.cpu(), parts, group=group, group_dst=0)
    if parts is None:
        return [state]
    return [part for part in parts if part.numel()] or [state]
