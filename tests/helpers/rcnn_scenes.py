"""A small R-CNN, and scenes with proposals for it."""

import torch
from scenes import make_image, make_target
from torch.utils.data import DataLoader, Dataset

from zoo.detector import Recipe
from zoo.models.rcnn import RCNN
from zoo.nn.frame import FrameConfig
from zoo.nn.head_fitting import fit_linear_heads
from zoo.proposals import SelectiveSearch
from zoo.types import Batch, RawBatch, Sample

FRAME = FrameConfig(min_size=64, max_size=96)


SEARCH = SelectiveSearch("single", width=None, min_side=6, limit=40, min_segment=10)


def build(**arguments: object) -> RCNN:
    torch.manual_seed(0)
    defaults: dict[str, object] = {
        "trunk": "resnet10t",
        "crop_size": 32,
        "context": 4,
        "windows_per_batch": 32,
        "proposals": SEARCH,
        "frame": FRAME,
        "recipe": Recipe("adamw", lr=1e-3, warmup_steps=0, schedule="constant"),
        "score_threshold": 0.01,
    }
    return RCNN(num_classes=2, **(defaults | arguments))  # type: ignore[arg-type]


class Scenes(Dataset[Sample]):
    """Coloured rectangles on grey noise, one or two an image, the proposals jittered around them and elsewhere."""

    def __init__(self, num: int) -> None:
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Sample:
        random = torch.Generator().manual_seed(index)
        x = 4 + 20 * torch.rand(1, generator=random).item()
        y = 4 + 20 * torch.rand(1, generator=random).item()
        boxes = [[x, y, x + 26, y + 30], [58.0, 30.0, 78.0, 58.0]][: 1 + index % 2]
        target = make_target(boxes, [index // 2 % 2, index % 2][: len(boxes)], index)
        image = make_image(64, 80, target, index)
        near = target["boxes"].repeat(4, 1) + 8 * (torch.rand(4 * len(boxes), 4, generator=random) - 0.5)
        corner = torch.rand(12, 2, generator=random) * 40
        far = torch.cat((corner, corner + 12 + 10 * torch.rand(12, 2, generator=random)), dim=1)
        limits = torch.tensor([80.0, 64.0, 80.0, 64.0])
        target["proposals"] = torch.cat((near, far)).clamp(min=0).minimum(limits)
        return image, target


def collate(samples: list[Sample]) -> RawBatch:
    return [image for image, _ in samples], [target for _, target in samples]


def make_loader(num: int = 12, batch_size: int = 4) -> DataLoader:
    return DataLoader(Scenes(num), batch_size=batch_size, collate_fn=collate)  # type: ignore[arg-type]


def make_batch(detector: RCNN, num: int = 4) -> Batch:
    return detector.frame_batch(*collate([Scenes(num)[index] for index in range(num)]))


def fit(detector: RCNN, num: int = 12, batch_size: int = 4) -> RCNN:
    loader = make_loader(num, batch_size)
    fit_linear_heads(detector, iter(loader), len(loader), report=lambda line: None)
    return detector.eval()
