import os
import pickle
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from zoo.data.augment import Augment
from zoo.data.dataset import DetectionDataset, ImageCache, collate
from zoo.data.formats.coco import Coco, write_coco
from zoo.data.formats.shapes import Shapes
from zoo.data.formats.voc import Voc, write_voc
from zoo.data.images import write_images
from zoo.data.module import DetectionDataModule
from zoo.data.source import DataWarning, Source
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.proposals import CacheWarning, SelectiveSearch, propose

SEARCH = SelectiveSearch("single", width=None, min_side=8, limit=30)
TRAIN, VAL = Shapes(21, seed=0), Shapes(7, seed=1)
ALL_AUGMENTATIONS = Augment(flip=True, vertical_flip=True, scale_jitter=(0.5, 1.5))


@dataclass(frozen=True)
class CountedShapes(Source):
    """Shapes that count in files how often each image is drawn."""

    folder: str
    num_images: int = 6

    def read(
        self, strict: bool = False, classes: tuple[str, ...] | None = None, with_masks: bool = False
    ) -> AnnotationTable:
        return Shapes(self.num_images, seed=0).read()

    def load_image(self, table, index):
        with open(os.path.join(self.folder, str(index)), "a") as file:
            file.write("x")
        return Shapes(self.num_images, seed=0).load_image(table, index)

    def counts(self):
        return [os.path.getsize(os.path.join(self.folder, str(index))) for index in range(self.num_images)]


def samples(loader):
    return [
        (image.clone(), {key: value.clone() for key, value in target.items()})
        for images, targets in loader
        for image, target in zip(images, targets, strict=True)
    ]


def equal(one, other):
    return len(one) == len(other) and all(
        torch.equal(a[0], b[0]) and all(torch.equal(a[1][key], b[1][key]) for key in a[1])
        for a, b in zip(one, other, strict=True)
    )


def test_properties_without_a_trainer():
    data = DetectionDataModule(train=TRAIN, val=VAL, name="shapes")
    assert data.num_classes == 6
    assert data.class_names[0] == "disc"
    assert data.class_ids == (1, 2, 3, 4, 5, 6)
    assert (data.name, len(data.table("train")), len(data.table("val"))) == ("shapes", 21, 7)
    with pytest.raises(InputError, match="no test images are given"):
        data.table("test")
    with pytest.raises(InputError, match="no data set is given"):
        _ = DetectionDataModule().num_classes


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_return_the_same_samples_as_the_main_process(start):
    dataset = DetectionDataset(TRAIN.read(), TRAIN, ALL_AUGMENTATIONS, seed=5)
    keys = [3, 0, 20, 24, 45]  # in three epochs
    loader = DataLoader(dataset, 2, sampler=keys, num_workers=2, collate_fn=collate, multiprocessing_context=start)
    assert equal(samples(loader), [dataset[key] for key in keys])


def test_pickled_dataset_is_equal():
    dataset = DetectionDataset(TRAIN.read(), TRAIN, ALL_AUGMENTATIONS, seed=5)
    again = pickle.loads(pickle.dumps(dataset))
    assert again.table.fingerprint() == dataset.table.fingerprint()
    assert equal([again[30]], [dataset[30]])


def test_augmentation_depends_on_seed_epoch_and_image_only():
    def epoch(number, workers, seed=0):
        data = DetectionDataModule(train=TRAIN, batch_size=4, num_workers=workers, augment=ALL_AUGMENTATIONS, seed=seed)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        return {int(target["image_id"]): (image, target) for image, target in samples(loader)}

    first = epoch(0, workers=0)
    assert len(first) == 20  # the last batch is not full
    again = epoch(0, workers=2)
    assert equal(list(first.values()), list(again.values()))
    for other in (epoch(1, workers=0), epoch(0, workers=0, seed=1)):
        both = first.keys() & other.keys()
        assert not any(torch.equal(first[key][0], other[key][0]) for key in both)


def test_loading_does_not_change_the_global_random_state():
    dataset = DetectionDataset(TRAIN.read(), TRAIN, ALL_AUGMENTATIONS)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    _ = dataset[4]
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_cache_decodes_each_image_once_and_samples_are_equal(tmp_path, workers):
    source = CountedShapes(str(tmp_path))
    data = DetectionDataModule(train=source, batch_size=2, num_workers=workers, augment=ALL_AUGMENTATIONS, cache_mb=50)
    plain = DetectionDataModule(train=Shapes(6, seed=0), batch_size=2, num_workers=0, augment=ALL_AUGMENTATIONS)
    loader, expected = data.train_dataloader(), plain.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        expected.sampler.set_epoch(epoch)
        assert equal(samples(loader), samples(expected))
    assert source.counts() == [1] * 6
    data.train_dataloader()  # shares the same cache
    assert data.dataset("train").cache.filled.all()


def test_cache_is_bounded_and_returns_copies():
    table = Shapes(6, seed=0).read()
    sizes = table.widths.astype(int) * table.heights * 3
    cache = ImageCache(table.widths, table.heights, megabytes=sizes[:3].sum() / 1e6)
    images = [Shapes(6, seed=0).load_image(table, index) for index in range(6)]
    for index, image in enumerate(images):
        assert cache.get(index) is None
        cache.put(index, image)
    assert [cache.get(index) is not None for index in range(6)] == [True] * 3 + [False] * 3
    assert cache.pixels.numel() == sizes[:3].sum()
    copy = cache.get(1)
    assert torch.equal(copy, images[1])
    copy.zero_()
    assert torch.equal(cache.get(1), images[1])


def test_cache_is_limited_by_free_shared_memory(monkeypatch):
    monkeypatch.setattr("zoo.data.module.shutil.disk_usage", lambda path: type("Usage", (), {"free": 200_000}))
    monkeypatch.setattr("zoo.data.module._SHARED_MEMORY", type("Path", (), {"is_dir": staticmethod(lambda: True)}))
    with pytest.warns(DataWarning, match="instead of"):
        cache = DetectionDataModule(train=TRAIN, cache_mb=50).dataset("train").cache
    assert cache.pixels.numel() <= 160_000


def test_evaluation_loaders_yield_every_image_unchanged():
    data = DetectionDataModule(
        train=TRAIN, val=VAL, test=VAL, eval_batch_size=3, num_workers=0, augment=ALL_AUGMENTATIONS
    )
    table = VAL.read()
    for loader in (data.val_dataloader(), data.test_dataloader()):
        found = samples(loader)
        assert equal(found, [(VAL.load_image(table, index), table.target(index)) for index in range(7)])
    assert DetectionDataModule(train=TRAIN).val_dataloader() == []


def test_training_set_smaller_than_a_batch():
    loader = DetectionDataModule(train=Shapes(3, seed=0), batch_size=8, num_workers=0).train_dataloader()
    assert [len(images) for images, _ in loader] == [3]


def test_aspect_ratio_grouping(tmp_path):
    shapes = [(40, 20) if index % 3 else (20, 40) for index in range(24)]
    rows = {"image_index": np.zeros(0, np.int64), "boxes": np.zeros((0, 4)), "labels": np.zeros(0, np.int64)}
    names = [f"{index}.png" for index in range(24)]
    for name, size in zip(names, shapes, strict=True):
        PILImage.new("RGB", size).save(tmp_path / name)
    widths, heights = np.array(shapes).T
    table = AnnotationTable.from_rows(
        classes=["x"], image_ids=np.arange(24), widths=widths, heights=heights, file_names=names, **rows
    )
    write_coco(table, tmp_path / "a.json")
    source = Coco(str(tmp_path / "a.json"), str(tmp_path))
    data = DetectionDataModule(train=source, batch_size=4, num_workers=0, aspect_ratio_grouping=True)
    batches = [{tuple(image.shape) for image in images} for images, _ in data.train_dataloader()]
    assert len(batches) == 6
    assert all(len(batch) == 1 for batch in batches)


def test_predict_loader(tmp_path):
    PILImage.new("RGB", (9, 5)).save(tmp_path / "a.png")
    data = DetectionDataModule(train=TRAIN, predict=[str(tmp_path)], num_workers=0)
    ((images, targets),) = data.predict_dataloader()
    assert images[0].shape == (3, 5, 9)
    assert targets[0]["image_id"] == 0
    assert data.table("predict").file_name(0) == "a.png"
    assert data.table("predict").classes == data.class_names


def make_voc(root, split, shapes, classes):
    table = shapes.read()
    renamed = AnnotationTable(
        **{**{f: getattr(table, f) for f in table.__dataclass_fields__}, "classes": tuple(classes)}
    )
    write_voc(renamed, root, split)
    write_images(renamed, shapes, root / "JPEGImages")
    return Voc([str(root)], split)


def test_class_lists_of_splits(tmp_path):
    train = make_voc(tmp_path, "train", Shapes(9, seed=0), "abcdef")
    val = make_voc(tmp_path, "val", Shapes(1, seed=6), "abcdef")
    data = DetectionDataModule(train=train, val=val)
    # the only validation image does not have all classes, but uses the labels of the training split
    assert data.table("val").classes == tuple("abcdef")
    assert data.table("val").labels.tolist() == Shapes(1, seed=6).read().labels.tolist()
    with pytest.raises(InputError, match=r"only in val: cross, disc, .*only in train: a, b"):
        DetectionDataModule(train=train, val=VAL).setup("fit")
    unknown = make_voc(tmp_path, "test", Shapes(9, seed=5), "abcdeX")
    # without a list of classes, they are those of all splits
    data = DetectionDataModule(train=train, test=unknown)
    assert data.class_names == data.table("test").classes == ("X", *"abcdef")
    listed = replace(train, classes=list("abcdef"))
    with pytest.raises(InputError, match=r"class 'X' is not one of a, b"):
        DetectionDataModule(train=listed, test=unknown).setup("test")


def test_errors_in_workers_keep_their_type_and_message(tmp_path):
    source = make_voc(tmp_path, "train", Shapes(2, seed=0), "abcdef")
    file = sorted((tmp_path / "JPEGImages").iterdir())[0]
    file.write_bytes(file.read_bytes()[:300])
    loader = DetectionDataModule(train=source, num_workers=1, batch_size=1).train_dataloader()
    with pytest.raises(InputError) as caught:
        list(loader)
    assert str(caught.value).strip().splitlines()[-1].endswith("remove or replace it")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_targets_have_the_proposals_of_their_image(tmp_path, workers):
    given = {"train": TRAIN, "val": VAL, "eval_batch_size": 3, "num_workers": workers, "proposals": SEARCH}
    data = DetectionDataModule(**given, proposal_cache=str(tmp_path))
    table = VAL.read()
    for index, (image, target) in enumerate(samples(data.val_dataloader())):
        assert torch.equal(image, VAL.load_image(table, index))
        assert torch.equal(target["proposals"], propose(image, SEARCH))
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == 7
    uncached = DetectionDataModule(**given, proposal_cache_mb=0)
    assert equal(samples(data.val_dataloader()), samples(uncached.val_dataloader()))
    assert "proposals" not in samples(DetectionDataModule(**given | {"proposals": None}).val_dataloader())[0][1]


def test_proposals_are_computed_before_augmentation(tmp_path):
    """Selective search on a flipped image finds other boxes than the flipped boxes of the original."""
    augment = Augment(flip=True)
    data = DetectionDataModule(train=TRAIN, augment=augment, proposals=SEARCH, proposal_cache=str(tmp_path))
    dataset = data.dataset("train")
    was_flipped = set()
    for index in range(8):
        before = TRAIN.load_image(dataset.table, index)
        expected = propose(before, SEARCH)
        image, target = dataset[index]
        if not torch.equal(image, before):
            assert torch.equal(image, before.flip(2))
            expected[:, [0, 2]] = before.shape[2] - expected[:, [2, 0]]
        was_flipped.add(torch.equal(image, before))
        assert torch.equal(target["proposals"], expected)
    assert was_flipped == {True, False}


def test_proposals_follow_every_augmentation():
    """With ground-truth boxes as proposals, every augmented box is among the augmented proposals."""
    augment = replace(ALL_AUGMENTATIONS, translate=0.2, photometric=True, iou_crop=True)
    dataset = DetectionDataset(TRAIN.read(), TRAIN, augment, seed=5)
    for index in range(10):
        boxes = dataset.table.target(index)["boxes"]
        dataset.propose = lambda image, boxes=boxes: boxes.clone()
        image, target = dataset[index + 21]
        assert {tuple(box) for box in target["boxes"].tolist()} <= {tuple(box) for box in target["proposals"].tolist()}
        assert (target["proposals"] >= 0).all()
        assert (target["proposals"][:, 2:] <= torch.tensor([image.shape[2], image.shape[1]])).all()
        assert (target["proposals"][:, 2:] > target["proposals"][:, :2]).all()


def test_unwritable_proposal_cache_warns_once_and_loading_continues(tmp_path):
    (tmp_path / "file").write_text("")
    data = DetectionDataModule(
        train=TRAIN, val=VAL, num_workers=2, proposals=SEARCH, proposal_cache=str(tmp_path / "file")
    )
    with pytest.warns(CacheWarning) as warned:
        found = samples(data.val_dataloader()) + samples(data.train_dataloader())
    assert len(warned) == 1
    assert all(len(target["proposals"]) for _, target in found)


class Recorder(pl.LightningModule):
    """Records the ids of the images in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": [], "test": [], "predict": []}

    def _see(self, name, batch):
        self.seen[name].append([int(target["image_id"]) for target in batch[1]])

    def training_step(self, batch, batch_index):
        self._see("train", batch)
        return self.weight * 0

    def validation_step(self, batch, batch_index):
        self._see("val", batch)

    def test_step(self, batch, batch_index):
        self._see("test", batch)

    def predict_step(self, batch, batch_index):
        self._see("predict", batch)
        return torch.zeros(1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(**changes):
    return pl.Trainer(
        **({"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
            "enable_model_summary": False, "max_epochs": 2, "num_sanity_val_steps": 0} | changes)
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_with_a_trainer(tmp_path):
    PILImage.new("RGB", (9, 5)).save(tmp_path / "a.png")
    data = DetectionDataModule(train=TRAIN, val=VAL, test=VAL, predict=[str(tmp_path)], batch_size=5, num_workers=0)
    model = Recorder()
    trainer().fit(model, data)
    epochs = [list(chain(*model.seen["train"][:4])), list(chain(*model.seen["train"][4:]))]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert model.seen["val"][:2] == [[1, 2, 3, 4, 5], [6, 7]]
    trainer().test(model, data, verbose=False)
    assert list(chain(*model.seen["test"])) == [1, 2, 3, 4, 5, 6, 7]
    trainer().predict(model, data)
    assert model.seen["predict"] == [[0]]


class ProposalRecorder(Recorder):
    """Checks that targets have the proposals that the module declares."""

    proposals = None

    def _see(self, name, batch):
        super()._see(name, batch)
        for image, target in zip(*batch, strict=True):
            assert ("proposals" in target) == (self.proposals is not None)
            if name != "train" and self.proposals is not None:
                assert torch.equal(target["proposals"], propose(image, self.proposals))


@pytest.mark.filterwarnings("ignore")
def test_trainer_provides_the_proposals_that_the_detector_declares(tmp_path):
    PILImage.fromarray(TRAIN.load_image(TRAIN.read(), 0).permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    given = {"train": TRAIN, "val": VAL, "test": VAL, "predict": [str(tmp_path / "a.png")]}
    data = DetectionDataModule(**given, batch_size=5, num_workers=0, proposal_cache=str(tmp_path / "cache"))
    for search in (SEARCH, None, SelectiveSearch("single", width=100, min_side=8)):
        model = ProposalRecorder()
        model.proposals = search
        trainer(max_epochs=1).fit(model, data)
        trainer().test(model, data, verbose=False)
        trainer().predict(model, data)
        assert model.seen["predict"] == [[0]]
        assert [bool(found) for found in model.seen.values()] == [True] * 4


@pytest.mark.parametrize("world_size", [2, 3])
def test_lightning_does_not_replace_the_samplers(world_size):
    """With several processes Lightning replaces samplers that are not DistributedSamplers."""
    loaders = []
    for rank in range(world_size):
        data = DetectionDataModule(train=TRAIN, val=VAL, num_workers=0, batch_size=2)
        fake = type("Trainer", (), {"world_size": world_size, "global_rank": rank})()
        data.trainer = fake
        loaders.append((data.train_dataloader(), data.val_dataloader()))
    for loader in (loader for pair in loaders for loader in pair):
        assert isinstance(loader.sampler, torch.utils.data.DistributedSampler)
    val = sorted(int(target["image_id"]) for _, loader in loaders for _, target in samples(loader))
    assert val == [1, 2, 3, 4, 5, 6, 7]
    assert len({len(train) for train, _ in loaders}) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_targets_have_masks_where_they_are_asked_for(num_workers):
    data = DetectionDataModule(Shapes(8, seed=0), Shapes(4, seed=1), batch_size=4, num_workers=num_workers)
    assert all("masks" not in target for _, target in samples(data.val_dataloader()))
    data = DetectionDataModule(Shapes(8, seed=0), Shapes(4, seed=1), batch_size=4, num_workers=num_workers)
    data.with_masks = True
    table = data.table("val")
    for index, (image, target) in enumerate(samples(data.val_dataloader())):
        rows = table.rows(index)
        expected = [table.masks.decode(row, *image.shape[1:]) for row in range(rows.start, rows.stop)]
        assert target["masks"].shape == (len(expected), *image.shape[1:])
        assert all(np.array_equal(one, other) for one, other in zip(target["masks"].numpy(), expected, strict=True))
    assert len(samples(data.train_dataloader())) == 8
