"""LightningDataModule of all detectors: a source for each split, loaders, augmentation and region proposals."""

import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from zoo.data.augment import Augment
from zoo.data.dataset import DetectionDataset, ImageCache, collate
from zoo.data.images import ImageFolder
from zoo.data.sampling import EvalSampler, TrainSampler
from zoo.data.source import DataWarning, Source
from zoo.data.summary import check_objects
from zoo.data.table import AnnotationTable
from zoo.data.workers import ignore_signals_of_others
from zoo.errors import InputError, SharedInputError
from zoo.proposals import ProposalCache, SelectiveSearch, propose
from zoo.types import Image

Split = Literal["train", "val", "test", "predict"]
ANNOTATED: tuple[Split, ...] = ("train", "val", "test")

_SHARED_MEMORY = Path("/dev/shm")
# Fraction of the free shared memory that the image cache may use; batches from workers need some too.
_CACHE_SHARE = 0.8


class DetectionDataModule(LightningDataModule):
    """Loaders that yield `RawBatch`es: uint8 images of any size, and targets in pixels of those images.

    Annotations are read on first use, so that the number of classes is available without a trainer.

    Args:
        train: training images; augmented and shuffled. Its classes are used for all splits.
        val: validation images, not augmented.
        test: test images, not augmented.
        predict: image files and folders to predict on.
        name: name of the data set, for reports.
        batch_size: images per training step and process.
        eval_batch_size: images per step in validation, test and prediction; by default `batch_size`.
        num_workers: worker processes of each loader; 0 decodes in the main process.
        seed: seed of shuffling and augmentation.
        augment: augmentation of the training images.
        strict: raise an error for bad boxes instead of skipping them with a warning.
        cache_mb: largest size in MB of the cache of a split's decoded images, which is filled in the first epoch and
            shared by the workers (0: no cache). Each process of a distributed run has its own.
        aspect_ratio_grouping: make training batches of only landscape or only portrait images, which need less padding.
        pin_memory: pin memory for faster copies to a GPU; has no effect without a GPU.
        proposals: region proposals to add to the targets, for use without a Trainer; a Trainer's detector
            overrides it.
        proposal_cache: folder of the proposal cache; by default `zoo.proposals.default_folder`.
        proposal_cache_mb: largest size in MB of the proposal cache on disk (0: no cache).
    """

    def __init__(
        self,
        train: Source | None = None,
        val: Source | None = None,
        test: Source | None = None,
        predict: list[str] | None = None,
        name: str = "data",
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
        augment: Augment = Augment(),  # noqa: B008 (frozen)
        strict: bool = False,
        cache_mb: float = 0,
        aspect_ratio_grouping: bool = True,
        pin_memory: bool = True,
        proposals: SelectiveSearch | None = None,
        proposal_cache: str | None = None,
        proposal_cache_mb: float = 4000,
    ) -> None:
        super().__init__()
        minimums = {
            "batch_size": (batch_size, 1),
            "eval_batch_size": (eval_batch_size, 1),
            "num_workers": (num_workers, 0),
        }
        for argument, (value, bound) in minimums.items():
            if value is not None and value < bound:
                raise InputError(f"is {value}; it must be at least {bound}", place=f"data.{argument}")
        given: dict[Split, Source | None] = {
            "train": train,
            "val": val,
            "test": test,
            "predict": ImageFolder(predict) if predict else None,
        }
        self.sources = {split: source for split, source in given.items() if source is not None}
        self.name = name
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.augment = augment
        self.strict = strict
        self.cache_mb = cache_mb
        self.aspect_ratio_grouping = aspect_ratio_grouping
        self.pin_memory = pin_memory
        self.proposals = proposals
        self.proposal_cache = proposal_cache
        self.proposal_cache_mb = proposal_cache_mb
        self._given_proposals = proposals
        self.with_masks = False
        """Whether tables and targets have masks; set before the first table is read."""
        self._tables: dict[Split, AnnotationTable] = {}
        self._caches: dict[Split, ImageCache] = {}
        self._proposals_on_disk: ProposalCache | None = None
        self._resume_position: dict[str, int] | None = None  # where the next training loader starts

    def table(self, split: Split) -> AnnotationTable:
        """Annotations of a split; read once.

        Raises:
            InputError: there is no such split, or its classes differ from those of the training images.
        """
        if split not in self._tables:
            if split not in self.sources:
                raise InputError(f"no {split} images are given; set `data.{split}`")
            first = self._class_split()
            if first is not None and first not in self._tables and not self.sources[first].has_classes:
                self._read_together(type(self.sources[first]))
                if split in self._tables:
                    return self._tables[split]
            classes = None if first in (split, None) else self.table(first).classes
            table = self.sources[split].read(self.strict, classes, self.with_masks)
            if first not in (split, None):
                self._check_classes(split, table, self.table(first), first)
            self._tables[split] = table
        return self._tables[split]

    def _read_together(self, kind: type[Source]) -> None:
        """Reads all annotated splits without a list of classes, so that their classes are those of all of them."""
        missing = [
            split
            for split in ANNOTATED
            if split in self.sources and type(self.sources[split]) is kind and not self.sources[split].has_classes
        ]
        tables = kind.read_together([self.sources[split] for split in missing], self.strict, self.with_masks)
        self._tables.update(zip(missing, tables, strict=True))

    def _class_split(self) -> Split | None:
        """First annotated split; its classes are used for all splits."""
        return next((split for split in ANNOTATED if split in self.sources), None)

    def _check_classes(self, split: Split, table: AnnotationTable, known: AnnotationTable, known_split: Split) -> None:
        same = table.classes == known.classes and np.array_equal(table.class_ids, known.class_ids)
        if same or split == "predict":
            return
        only_here = sorted(set(table.classes) - set(known.classes))
        only_there = sorted(set(known.classes) - set(table.classes))
        if only_here or only_there:
            parts = [
                f"only in {name}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
                for name, names in ((split, only_here), (known_split, only_there))
                if names
            ]
            detail = "; ".join(parts)
        else:
            detail = "the names are the same, but not their order or ids"
        raise InputError(
            f"{known_split} has {known.num_classes} classes and {split} {table.num_classes}, which differ ({detail}); "
            "give splits of one data set"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the first annotated split, in the order of the labels."""
        return self._class_table().classes

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Category ids of the data set, in the order of the labels."""
        return tuple(self._class_table().class_ids.tolist())

    @property
    def num_classes(self) -> int:
        """Number of foreground classes."""
        return self._class_table().num_classes

    def _class_table(self) -> AnnotationTable:
        split = self._class_split()
        if split is None:
            raise InputError("no data set is given; set at least one of `data.train`, `data.val`, `data.test`")
        return self.table(split)

    def setup(self, stage: str | None = None) -> None:
        """Reads the annotations of the splits that the stage uses, so that input errors occur before it starts.

        Takes the settings of region proposals from the Trainer's detector, where it has any, and whether it uses masks.
        """
        if self.trainer is not None:
            self.want_masks(getattr(self.trainer.lightning_module, "mask_side", 0) > 0)
            self.proposals = getattr(self.trainer.lightning_module, "proposals", None) or self._given_proposals
        needed: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
            "predict": ("predict",),
        }
        for split in needed[stage] if stage else self.sources:
            if split in self.sources:
                table = self.table(split)
                if stage in ("fit", "validate", "test"):
                    check_objects(split, table)
                    if split == "train" and self.with_masks and not table.has_masks:
                        raise InputError("no object of the train split has a mask; this detector is trained on masks")

    def want_masks(self, wanted: bool) -> None:
        """Whether tables are to have masks; those without are then read again."""
        if wanted and not self.with_masks:
            self._tables.clear()
        self.with_masks = wanted

    def state_dict(self) -> dict[str, int]:
        """Position of the training for a checkpoint: finished epochs, and images seen in the current epoch."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        finished = epochs.processed
        batches = loop.epoch_loop.batch_progress.current.ready if epochs.ready > finished else 0
        return {"epoch": finished, "num_images": batches * self.batch_size * self.trainer.world_size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Makes the next training loader start at this position; ignored unless a checkpoint is loaded for training."""
        if self.trainer is None or self.trainer.state.fn == "fit":
            self._resume_position = dict(state_dict)

    def dataset(self, split: Split) -> DetectionDataset:
        """Data set of a split, as its loader uses it."""
        if self.cache_mb and split != "predict" and split not in self._caches:
            self._caches[split] = self._make_cache(split)
        return DetectionDataset(
            self.table(split),
            self.sources[split],
            self.augment if split == "train" else None,
            self.seed,
            self._caches.get(split),
            self.proposer(),
        )

    def proposer(self) -> Callable[[Image], Tensor] | None:
        """Function image -> region proposals, which uses the cache on disk; None without region proposals."""
        if self.proposals is None:
            return None
        if not self.proposal_cache_mb:
            return partial(propose, search=self.proposals)
        if self._proposals_on_disk is None:
            self._proposals_on_disk = ProposalCache(self.proposal_cache, int(self.proposal_cache_mb * 1e6))
        return partial(self._proposals_on_disk.get, search=self.proposals)

    def _make_cache(self, split: Split) -> ImageCache:
        table = self.table(split)
        needed = float((table.widths.astype(np.int64) * table.heights).sum() * 3 / 1e6)
        bound = min(self.cache_mb, needed)
        if _SHARED_MEMORY.is_dir():
            free = shutil.disk_usage(_SHARED_MEMORY).free / 1e6 * _CACHE_SHARE
            if free < bound:
                warnings.warn(
                    f"the cache of {split} images gets {free:.0f} MB instead of {bound:.0f} MB: {_SHARED_MEMORY} has "
                    "no more free space (containers: --shm-size)",
                    DataWarning,
                    stacklevel=2,
                )
                bound = free
        return ImageCache(table.widths, table.heights, bound)

    def train_dataloader(self) -> DataLoader:
        """Loader of shuffled, augmented images; drops an incomplete last batch, unless it is the only batch."""
        dataset = self.dataset("train")
        groups = (dataset.table.widths < dataset.table.heights).astype(np.int64) if self.aspect_ratio_grouping else None
        sampler = TrainSampler(dataset, *self._processes(), self.seed, groups, self.batch_size)
        if self._resume_position is not None:
            sampler.resume_at(**self._resume_position)
            self._resume_position = None
        return self._loader(dataset, sampler, self.batch_size, drop_last=len(sampler) >= self.batch_size)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Loader of every validation image once over all processes, in order; [] without validation images."""
        return self._eval_loader("val") if "val" in self.sources else []

    def test_dataloader(self) -> DataLoader:
        """Loader of every test image once over all processes, in order."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Loader of every image to predict on once over all processes, in order; targets have no objects."""
        return self._eval_loader("predict")

    def _eval_loader(self, split: Split) -> DataLoader:
        dataset = self.dataset(split)
        num_processes, rank = self._processes()
        if len(dataset) < num_processes:
            message = (
                f"{len(dataset)} {split} images for {num_processes} processes; evaluate and predict with fewer devices"
            )
            raise SharedInputError(message) if rank else InputError(message)
        sampler = EvalSampler(dataset, num_processes, rank)
        return self._loader(dataset, sampler, self.eval_batch_size, drop_last=False)

    def _loader(
        self, dataset: DetectionDataset, sampler: DistributedSampler[int], batch_size: int, drop_last: bool
    ) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=collate,
            worker_init_fn=ignore_signals_of_others,
            pin_memory=self.pin_memory and torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def _processes(self) -> tuple[int, int]:
        """(world size, rank) from the trainer, else from torch.distributed."""
        if self.trainer is not None:
            return self.trainer.world_size, self.trainer.global_rank
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size(), torch.distributed.get_rank()
        return 1, 0
