"""The one DataModule: any reader for each split, the same augmentation for every detector."""

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
from zoo.data.table import AnnotationTable
from zoo.errors import InputError, SharedInputError
from zoo.proposals import ProposalCache, SelectiveSearch, propose
from zoo.types import Image

Split = Literal["train", "val", "test", "predict"]
ANNOTATED: tuple[Split, ...] = ("train", "val", "test")

_SHARED_MEMORY = Path("/dev/shm")
# Part of the free shared memory that the cache may take: batches on their way need some too.
_CACHE_SHARE = 0.8


class DetectionDataModule(LightningDataModule):
    """Loaders that yield `RawBatch`es: uint8 images of any size, and their targets in pixels of those images.

    Annotations are read when they are first asked for, so that the number of classes is known before a trainer exists.

    Args:
        train: images to learn from; augmented and shuffled. Its class list is everybody's.
        val: images to validate on, as they are.
        test: images to test on, as they are.
        predict: image files and folders to predict on.
        name: of the data set, for reports.
        batch_size: images a training step and process.
        eval_batch_size: images a step elsewhere; `batch_size` where not given.
        num_workers: decoding processes for each loader; 0 decodes in the trainer's.
        seed: decides the order of the images and what augmentation draws.
        augment: switches of the augmentations.
        strict: bad boxes end the run instead of being skipped with a warning.
        cache_mb: most memory in MB for the decoded images of a split, kept from the first epoch on and shared by its
            workers (0: no cache). Each process of a distributed run has its own.
        aspect_ratio_grouping: training batches are all wide or all high images.
        pin_memory: for faster copies to a GPU; only when there is one.
        proposals: region proposals that the targets carry, for use without a Trainer; with one, its detector says.
        proposal_cache: folder where they are kept; where not given, that of `zoo.proposals.default_folder`.
        proposal_cache_mb: most disk space in MB for them (0: nothing is kept).
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
        aspect_ratio_grouping: bool = False,
        pin_memory: bool = True,
        proposals: SelectiveSearch | None = None,
        proposal_cache: str | None = None,
        proposal_cache_mb: float = 4000,
    ) -> None:
        super().__init__()
        least = {
            "batch_size": (batch_size, 1),
            "eval_batch_size": (eval_batch_size, 1),
            "num_workers": (num_workers, 0),
        }
        for argument, (value, bound) in least.items():
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
        self._tables: dict[Split, AnnotationTable] = {}
        self._caches: dict[Split, ImageCache] = {}
        self._proposals_on_disk: ProposalCache | None = None
        self._place: dict[str, int] | None = None  # where the next training loader begins, if not at the start

    def table(self, split: Split) -> AnnotationTable:
        """The annotations of a split, read once.

        Raises:
            InputError: no such split, or one whose classes are not those of the training images.
        """
        if split not in self._tables:
            if split not in self.sources:
                raise InputError(f"no {split} images are given; set `data.{split}`")
            first = self._class_split()
            classes = None if first in (split, None) else self.table(first).classes
            table = self.sources[split].read(self.strict, classes)
            if first not in (split, None):
                self._check_classes(split, table, self.table(first), first)
            self._tables[split] = table
        return self._tables[split]

    def _class_split(self) -> Split | None:
        """The split whose class list counts."""
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
            "use splits of one data set"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the labels; those of the first split there is."""
        return self._class_table().classes

    @property
    def class_ids(self) -> tuple[int, ...]:
        """The data set's own category ids in the order of the labels."""
        return tuple(self._class_table().class_ids.tolist())

    @property
    def num_classes(self) -> int:
        """Foreground classes."""
        return self._class_table().num_classes

    def _class_table(self) -> AnnotationTable:
        split = self._class_split()
        if split is None:
            raise InputError("no data set is given; set at least one of `data.train`, `data.val`, `data.test`")
        return self.table(split)

    def describe(self) -> dict[str, str | int]:
        """Name, images by split, classes, and a fingerprint of the annotations of each split; for reports."""
        facts: dict[str, str | int] = {"name": str(self.name), "num_classes": self.num_classes}
        for split in ANNOTATED:
            if split in self.sources:
                facts[f"{split}_images"] = len(self.table(split))
                facts[f"{split}_fingerprint"] = self.table(split).fingerprint()
        return facts

    def setup(self, stage: str | None = None) -> None:
        """Reads what the stage needs, so that bad input ends the run before it starts.

        A Trainer's detector is asked for the region proposals that it needs.
        """
        if self.trainer is not None:
            self.proposals = getattr(self.trainer.lightning_module, "proposals", None) or self._given_proposals
        needed: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
            "predict": ("predict",),
        }
        for split in needed[stage] if stage else self.sources:
            if split in self.sources:
                self.table(split)

    def state_dict(self) -> dict[str, int]:
        """How far the training has come, for a checkpoint: epochs that are over, and images seen of the one after."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        over = epochs.processed
        batches = loop.epoch_loop.batch_progress.current.ready if epochs.ready > over else 0
        return {"epoch": over, "num_images": batches * self.batch_size * self.trainer.world_size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The next training loader begins there, if it is for training that a checkpoint is read."""
        if self.trainer is None or self.trainer.state.fn == "fit":
            self._place = dict(state_dict)

    def dataset(self, split: Split) -> DetectionDataset:
        """A split image by image, as its loader sees it."""
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
        """What gives an image its region proposals, through the cache on disk; None where none are wanted."""
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
                    f"the cache of {split} images gets {free:.0f} MB instead of {bound:.0f} MB: "
                    f"{_SHARED_MEMORY} has no more room (containers: --shm-size)",
                    DataWarning,
                    stacklevel=2,
                )
                bound = free
        return ImageCache(table.widths, table.heights, bound)

    def train_dataloader(self) -> DataLoader:
        """Shuffled and augmented; a last batch that is not full is left out, unless it is the only one."""
        dataset = self.dataset("train")
        groups = (dataset.table.widths < dataset.table.heights).astype(np.int64) if self.aspect_ratio_grouping else None
        sampler = TrainSampler(dataset, *self._processes(), self.seed, groups, self.batch_size)
        if self._place is not None:
            sampler.resume_at(**self._place)
            self._place = None
        return self._loader(dataset, sampler, self.batch_size, drop_last=len(sampler) >= self.batch_size)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Every image once over all processes, in order; nothing where no validation images are given."""
        return self._eval_loader("val") if "val" in self.sources else []

    def test_dataloader(self) -> DataLoader:
        """Every image once over all processes, in order."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Every image once over all processes, in order; targets have no objects."""
        return self._eval_loader("predict")

    def _eval_loader(self, split: Split) -> DataLoader:
        dataset = self.dataset(split)
        num_processes, rank = self._processes()
        if len(dataset) < num_processes:
            words = (
                f"{len(dataset)} {split} images for {num_processes} processes; measure and predict with fewer devices"
            )
            raise SharedInputError(words) if rank else InputError(words)
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
            pin_memory=self.pin_memory and torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def _processes(self) -> tuple[int, int]:
        """(how many there are, which one this is); a trainer knows best, else torch.distributed."""
        if self.trainer is not None:
            return self.trainer.world_size, self.trainer.global_rank
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size(), torch.distributed.get_rank()
        return 1, 0
