"""CornerNet's targets, losses and decoding against loops over cells and objects, and the original code's names."""

import itertools
import math

import pytest
import torch
from scenes import make_image, make_target
from torch import Tensor

from zoo.errors import InputError
from zoo.models.cornernet import (
    STRIDE,
    CornerNet,
    Corners,
    make_targets,
    offset_loss,
    pair_corners,
    pull_push_losses,
    stack_losses,
)
from zoo.nn.frame import Frame, FrameConfig
from zoo.ops.flip import flip_boxes
from zoo.ops.heatmap import gaussian_radius
from zoo.types import Batch, Target
from zoo.weights import load_weights
from zoo.weights.cornernet import from_cornernet

SMALL: dict[str, object] = {
    "num_stacks": 2,
    "stage_channels": (16, 16, 24),
    "stage_depths": (1, 1, 1),
    "stem_channels": 16,
    "channels": 32,
    "pooled_channels": 16,
}
FRAME = FrameConfig(min_size=96, max_size=128)


def small(seed: int = 0, **arguments: object) -> CornerNet:
    torch.manual_seed(seed)
    return CornerNet(3, frame=FRAME, **{**SMALL, **arguments}).double().eval()


def frame(*targets: Target, size: tuple[int, int] = (96, 128)) -> Batch:
    """Framed, not resized, in float64."""
    return Frame(FRAME).double()([make_image(*size, target) for target in targets], list(targets))


def cells_of(x: float, y: float) -> tuple[int, int]:
    return math.floor(x / STRIDE), math.floor(y / STRIDE)


# ---------------------------------------------------------------------------------------------------------- targets


def test_targets_by_hand() -> None:
    """A box of 11 x 5.75 cells whose corners are in the cells (2, 3) and (13, 9), at (.25, .5) and (.25, .25)."""
    batch = frame(make_target([[9, 14, 53, 37]], [1]))
    top_left, bottom_right = make_targets(batch, 3, torch.zeros(1, 3, 24, 32), 0.3)
    assert top_left.index.tolist() == [[3 * 32 + 2]]
    assert bottom_right.index.tolist() == [[9 * 32 + 13]]
    assert top_left.offset.tolist() == [[[0.25, 0.5]]]
    assert bottom_right.offset.tolist() == [[[0.25, 0.25]]]
    radius = int(gaussian_radius(torch.tensor([11.0, 6.0]), 0.3))
    assert radius == 1  # one cell, so that sigma is 1/2
    for heat, (x, y) in ((top_left.heat, (2, 3)), (bottom_right.heat, (13, 9))):
        assert heat[0, 1, y, x] == 1
        assert heat[0, 1, y, x + 1].item() == pytest.approx(math.exp(-2))
        assert heat[0, 1, y - 1, x - 1].item() == pytest.approx(math.exp(-4))
        assert heat.sum().item() == pytest.approx(1 + 4 * math.exp(-2) + 4 * math.exp(-4))


def test_edges_on_the_grid_and_at_the_frame_s_end_stay_in_the_box() -> None:
    """Right and lower edges on a multiple of the stride end the cell before: the frame's last edge has one, too."""
    batch = frame(make_target([[8, 12, 16, 20], [0, 0, 128, 96]], [0, 0]))
    top_left, bottom_right = make_targets(batch, 3, torch.zeros(1, 3, 24, 32), 0.3)
    assert top_left.index.tolist() == [[3 * 32 + 2, 0]]
    assert bottom_right.index.tolist() == [[4 * 32 + 3, 23 * 32 + 31]]
    assert (bottom_right.offset == 1).all()
    assert (top_left.offset == 0).all()


# ----------------------------------------------------------------------------------------------------------- losses


def test_pull_and_push_by_hand() -> None:
    """Means 1, 1.5, 4 of three objects: the first two are half as far apart as they should be; the fourth is none."""
    top_left = torch.tensor([[0.5, 1.5, 4.0, 1.0]])
    bottom_right = torch.tensor([[1.5, 1.5, 4.0, 9.0]])
    pull, push = pull_push_losses(top_left, bottom_right, torch.tensor([[True, True, True, False]]))
    assert pull.tolist() == pytest.approx([(0.25 + 0.25) / 3])
    assert push.tolist() == pytest.approx([2 * 0.5 / (3 * 2)])


@pytest.mark.parametrize("num_objects", [0, 1, 7])
def test_pull_push_and_offset_against_loops(num_objects: int) -> None:
    torch.manual_seed(0)
    e_t, e_b = torch.randn(2, num_objects).double(), torch.randn(2, num_objects).double()
    pred, gt = torch.randn(2, num_objects, 2).double() * 2, torch.rand(2, num_objects, 2).double()
    mask = torch.rand(2, num_objects) < 0.7
    pull, push = pull_push_losses(e_t, e_b, mask)
    offset = 0.0
    for b in range(2):
        real = mask[b].nonzero()[:, 0].tolist()
        mean = {k: (e_t[b, k] + e_b[b, k]).item() / 2 for k in real}
        pulls = [(e_t[b, k].item() - mean[k]) ** 2 + (e_b[b, k].item() - mean[k]) ** 2 for k in real]
        pushes = [max(0.0, 1 - abs(mean[j] - mean[k])) for j, k in itertools.permutations(real, 2)]
        offset += sum(abs(d) - 0.5 if abs(d) > 1 else d * d / 2 for d in (pred[b] - gt[b])[real].flatten().tolist())
        assert pull[b].item() == pytest.approx(sum(pulls) / max(len(real), 1))
        assert push[b].item() == pytest.approx(sum(pushes) / max(len(pushes), 1))
    assert offset_loss(pred, gt, mask).item() == pytest.approx(offset)


def random_corners(batch: int, seed: int, size: tuple[int, int] = (24, 32)) -> tuple[Corners, Corners]:
    generator = torch.Generator().manual_seed(seed)

    def maps(channels: int) -> Tensor:
        return torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)

    return Corners(maps(3), maps(1), maps(2)), Corners(maps(3), maps(1), maps(2))


def test_a_stack_s_losses_read_the_cells_of_each_object() -> None:
    """All that is predicted, each at its corner's cell of its image, by loops; the third object is a crowd."""
    targets = [
        make_target([[9, 14, 53, 37], [70, 21, 101, 90], [4, 5, 50, 60]], [1, 0, 1]),
        make_target([[30, 30, 61, 75], [13, 41, 34, 79]], [2, 0], 1),
        make_target([], [], 2),
    ]
    targets[0]["iscrowd"][2] = True
    batch = frame(*targets)
    pair = random_corners(3, 1)
    gt = make_targets(batch, 3, pair[0].heat, 0.3)
    found = [loss.item() for loss in stack_losses(pair, gt, batch.mask)]

    heat = pull = push = offset = 0.0
    for b, target in enumerate(targets):
        boxes = target["boxes"][~target["iscrowd"]].tolist()
        n, embeddings = max(len(boxes), 1), []
        for x1, y1, x2, y2 in boxes:
            ends = []
            for corners, x, y in ((pair[0], x1, y1), (pair[1], x2, y2)):
                column, row = cells_of(x, y)
                ends.append(corners.embedding[b, 0, row, column].item())
                for axis, true in enumerate((x / STRIDE - column, y / STRIDE - row)):
                    error = abs(corners.offset[b, axis, row, column].item() - true)
                    offset += error - 0.5 if error > 1 else error**2 / 2
            embeddings.append(sum(ends) / 2)
            pull += sum((end - embeddings[-1]) ** 2 for end in ends) / n
        for j, k in itertools.permutations(range(len(boxes)), 2):
            push += max(0.0, 1 - abs(embeddings[j] - embeddings[k])) / (n * (n - 1))
        for corners, kind in zip(pair, gt, strict=True):
            p, y = corners.heat[b].sigmoid(), kind.heat[b]
            at_corner = (1 - p) ** 2 * p.log()
            elsewhere = (1 - y) ** 4 * p**2 * (1 - p).log()
            heat -= torch.where(y == 1, at_corner, elsewhere).sum().item()
    assert found == pytest.approx([heat / 4, pull / 3, push / 3, offset / 4])  # of four objects, of three images


def test_every_stack_is_supervised() -> None:
    """The loss is the mean over the stacks: with the same head on the same maps in both it is that of one."""
    detector = small()
    batch = frame(make_target([[9, 14, 53, 37]], [1]))
    with torch.no_grad():
        outputs = detector.encode(batch)
        losses = detector.compute_losses(outputs, batch)
        first = detector.heads[0](outputs.earlier_maps[0])
        gt = make_targets(batch, 3, first[0].heat, 0.3)
        each = [stack_losses(pair, gt, batch.mask) for pair in (first, outputs.corners)]
    for name, weight, one, other in zip(losses, (1, 0.1, 0.1, 1), *each, strict=True):
        torch.testing.assert_close(losses[name], weight * (one + other) / 2)


# --------------------------------------------------------------------------------------------------------- decoding


def perfect_corners(batch: Batch, size: tuple[int, int]) -> tuple[Corners, Corners]:
    """What a perfect network would say; object k has the embedding 3 k."""
    pair = []
    for kind in make_targets(batch, 3, torch.zeros(1, 3, *size, dtype=torch.float64), 0.3):
        embedding, offset = (
            torch.zeros(len(kind.index), 1, *size).double(),
            torch.zeros(len(kind.index), 2, *size).double(),
        )
        for b, m in batch.mask.nonzero().tolist():
            embedding[b, 0].view(-1)[kind.index[b, m]] = 3.0 * m
            offset[b].flatten(1)[:, kind.index[b, m]] = kind.offset[b, m]
        pair.append(Corners(torch.logit(kind.heat.clamp(1e-4, 0.99)), embedding, offset))
    return pair[0], pair[1]


def test_decoding_finds_what_the_targets_say() -> None:
    """A round trip, with edges on and off the grid and two objects of one class side by side."""
    boxes = [[9.5, 14, 53, 37.25], [57, 13, 104, 41], [8, 48, 64, 96], [81.0, 50, 128, 93]]
    batch = frame(make_target(boxes, [1, 1, 0, 2]), make_target(boxes[2:], [1, 2]))
    found, scores, labels = pair_corners(perfect_corners(batch, (24, 32)), 100, 0.5, 1000)
    for image, (expected, classes) in enumerate(((boxes, [0, 1, 1, 2]), (boxes[2:], [1, 2]))):
        best = scores[image] > 0.9
        assert best.sum() == len(expected)
        assert sorted(labels[image][best].tolist()) == classes
        torch.testing.assert_close(
            torch.tensor(sorted(found[image][best].tolist())), torch.tensor(sorted(expected)), atol=1e-3, rtol=0
        )


def slow_pairs(
    pair: tuple[Corners, Corners], image: int, num_corners: int
) -> dict[tuple[float, ...], tuple[float, int]]:
    """Box -> (score, label) of all pairs of one image, corner by corner."""
    kinds = []
    for corners in pair:
        heat = corners.heat[image].sigmoid()
        peaks = []
        for c, i, j in torch.cartesian_prod(*map(torch.arange, heat.shape)).tolist():
            around = heat[c, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            if heat[c, i, j] == around.max():
                dx, dy = corners.offset[image, :, i, j].tolist()
                place = ((j + dx) * STRIDE, (i + dy) * STRIDE)
                peaks.append((heat[c, i, j].item(), c, place, corners.embedding[image, 0, i, j].item()))
        kinds.append(sorted(peaks, reverse=True)[:num_corners])
    return {
        (x1, y1, x2, y2): ((score1 + score2) / 2, c1)
        for (score1, c1, (x1, y1), e1), (score2, c2, (x2, y2), e2) in itertools.product(*kinds)
        if c1 == c2 and abs(e1 - e2) <= 0.5 and x2 > x1 and y2 > y1
    }


@pytest.mark.parametrize(("num_corners", "num_pairs"), [(30, 900), (30, 8)])
def test_pairs_against_a_loop(num_corners: int, num_pairs: int) -> None:
    pair = random_corners(2, 3, (7, 9))
    boxes, scores, labels = pair_corners(pair, num_corners, 0.5, num_pairs)
    for image in range(2):
        expected = slow_pairs(pair, image, num_corners)
        best = sorted(expected.values(), reverse=True)[:num_pairs]
        is_pair = scores[image] > 0
        assert is_pair.sum() == len(best) > 5
        assert scores[image][is_pair].tolist() == pytest.approx([score for score, _ in best])
        for box, label in zip(boxes[image][is_pair].tolist(), labels[image][is_pair].tolist(), strict=True):
            near = min(expected, key=lambda other: math.dist(other, box))
            assert near == pytest.approx(box)
            assert expected[near][1] == label


def test_flip_test_sees_a_mirror_image_as_its_image_mirrored() -> None:
    """So that images of several widths, padded in one frame, have the mirror images' detections mirrored."""
    targets = [make_target([[9, 14, 53, 37]], [1], 0), make_target([[4, 5, 50, 60]], [2], 1)]
    images = [make_image(96, 96, targets[0], 0), make_image(96, 128, targets[1], 1)]
    detector = small(flip_test=True, score_threshold=0.0)
    there, back = detector(images), detector([image.flip(2) for image in images])
    alone = small(score_threshold=0.0)(images)
    for image, one, other, without in zip(images, there, back, alone, strict=True):
        torch.testing.assert_close(one["scores"], other["scores"])
        mirrored = flip_boxes(other["boxes"][None], torch.tensor([[float(image.shape[2]), 96.0]]))[0]
        torch.testing.assert_close(one["boxes"], mirrored, atol=1e-3, rtol=0)
        assert len(without["scores"]) > 0
        assert not torch.allclose(one["scores"][:5], without["scores"][:5])


def test_losses_do_not_see_mirror_images() -> None:
    batch = frame(make_target([[9, 14, 53, 37]], [1]), make_target([], [], 1))
    with torch.no_grad():
        both = [detector.compute_losses(detector.encode(batch), batch) for detector in (small(), small(flip_test=True))]
    for name in both[0]:
        torch.testing.assert_close(both[0][name], both[1][name])


@pytest.mark.parametrize("size", [(96, 128), (90, 101)])
def test_frames_of_any_size(size: tuple[int, int]) -> None:
    """Odd maps inside an hourglass: 90 x 101 pixels, padded to no multiple at all, go down to 6 x 7 cells."""
    torch.manual_seed(0)
    detector = CornerNet(
        3, frame=FrameConfig(min_size=90, max_size=128, divisor=1), score_threshold=0.0, **SMALL
    ).eval()
    target = make_target([[9, 14, 53, 37]], [1])
    prediction = detector([make_image(*size, target)])[0]
    assert len(prediction["scores"]) > 0
    losses = detector.compute_raw_losses(([make_image(*size, target)], [target]))
    assert all(loss.isfinite() for loss in losses.values())


# ------------------------------------------------------------------------------------------ the original code's names


def official_parameters(
    dims: tuple[int, ...] = (256, 256, 384, 384, 384, 512),
    modules: tuple[int, ...] = (2, 2, 2, 2, 2, 4),
    stem: int = 128,
    width: int = 256,
    pooled: int = 128,
    num_classes: int = 80,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of princeton-vl/CornerNet's state dict, from its rules of construction."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})

    def convolution(name: str, kernel: int, inputs: int, outputs: int) -> None:
        shapes[f"{name}.conv.weight"] = (outputs, inputs, kernel, kernel)
        norm(f"{name}.bn", outputs)

    def projection(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.0.weight"] = (outputs, inputs, 1, 1)
        norm(f"{name}.1", outputs)

    def residual(name: str, inputs: int, outputs: int, stride: int = 1) -> None:
        for index, width in ((1, inputs), (2, outputs)):
            shapes[f"{name}.conv{index}.weight"] = (outputs, width, 3, 3)
            norm(f"{name}.bn{index}", outputs)
        if stride != 1 or inputs != outputs:
            projection(f"{name}.skip", inputs, outputs)

    def hourglass(name: str, dims: tuple[int, ...], modules: tuple[int, ...]) -> None:
        for index in range(modules[0]):
            residual(f"{name}.up1.{index}", dims[0], dims[0])
            residual(f"{name}.low1.{index}", dims[0] if index == 0 else dims[1], dims[1], 2 if index == 0 else 1)
            residual(f"{name}.low3.{index}", dims[1], dims[0] if index == modules[0] - 1 else dims[1])
        if len(dims) > 2:
            hourglass(f"{name}.low2", dims[1:], modules[1:])
        else:
            for index in range(modules[1]):
                residual(f"{name}.low2.{index}", dims[1], dims[1])

    convolution("module.pre.0", 7, 3, stem)
    residual("module.pre.1", stem, dims[0], 2)
    for stack in range(2):
        hourglass(f"module.kps.{stack}", dims, modules)
        convolution(f"module.cnvs.{stack}", 3, dims[0], width)
        for corner in ("tl", "br"):
            pool = f"module.{corner}_cnvs.{stack}"
            convolution(f"{pool}.p1_conv1", 3, width, pooled)
            convolution(f"{pool}.p2_conv1", 3, width, pooled)
            shapes |= {f"{pool}.p_conv1.weight": (width, pooled, 3, 3), f"{pool}.conv1.weight": (width, width, 1, 1)}
            norm(f"{pool}.p_bn1", width)
            norm(f"{pool}.bn1", width)
            convolution(f"{pool}.conv2", 3, width, width)
            for kind, outputs in (("heats", num_classes), ("tags", 1), ("regrs", 2)):
                branch = f"module.{corner}_{kind}.{stack}"
                shapes |= {f"{branch}.0.conv.weight": (width, width, 3, 3), f"{branch}.0.conv.bias": (width,)}
                shapes |= {f"{branch}.1.weight": (outputs, width, 1, 1), f"{branch}.1.bias": (outputs,)}
    residual("module.inters.0", dims[0], dims[0])
    projection("module.inters_.0", dims[0], dims[0])
    projection("module.cnvs_.0", width, dims[0])
    return shapes


def test_the_original_s_names_and_shapes_are_ours_one_by_one() -> None:
    """Each tensor of the original is filled with a number of its own; no memory is taken for any."""
    shapes = official_parameters()
    numbers = {name: float(number) for number, name in enumerate(shapes)}
    state = {name: torch.tensor(numbers[name]).expand(shape) for name, shape in shapes.items()}
    with torch.device("meta"):
        detector = CornerNet(80)
    wanted = {name: value.shape for name, value in detector.state_dict().items() if "num_batches" not in name}
    loaded = from_cornernet(state, detector)
    assert {name: value.shape for name, value in loaded.items()} == wanted
    assert len(wanted) == len(shapes)
    # One of each rule, by hand.
    for ours, theirs in {
        "trunk.stem.1.skip.0.weight": "pre.1.skip.0.weight",
        "trunk.hourglasses.1.skip.0.conv1.weight": "kps.1.up1.0.conv1.weight",
        "trunk.hourglasses.0.inner.inner.down.0.bn2.bias": "kps.0.low2.low2.low1.0.bn2.bias",
        f"trunk.hourglasses.0{'.inner' * 5}.3.conv2.weight": f"kps.0{'.low2' * 5}.3.conv2.weight",
        "trunk.hourglasses.0.inner.up.1.skip.1.running_var": "kps.0.low2.low3.1.skip.1.running_var",
        "trunk.outputs.1.bn.weight": "cnvs.1.bn.weight",
        "trunk.from_inputs.0.0.weight": "inters_.0.0.weight",
        "trunk.from_outputs.0.1.bias": "cnvs_.0.1.bias",
        "trunk.merged.0.conv2.weight": "inters.0.conv2.weight",
        "heads.0.top_left.pooling.vertical.conv.weight": "tl_cnvs.0.p1_conv1.conv.weight",
        "heads.1.bottom_right.pooling.horizontal.bn.bias": "br_cnvs.1.p2_conv1.bn.bias",
        "heads.1.top_left.pooling.pooled.0.weight": "tl_cnvs.1.p_conv1.weight",
        "heads.1.top_left.pooling.pooled.1.bias": "tl_cnvs.1.p_bn1.bias",
        "heads.0.bottom_right.pooling.shortcut.0.weight": "br_cnvs.0.conv1.weight",
        "heads.0.bottom_right.pooling.shortcut.1.weight": "br_cnvs.0.bn1.weight",
        "heads.0.bottom_right.pooling.output.conv.weight": "br_cnvs.0.conv2.conv.weight",
        "heads.0.top_left.heat.0.weight": "tl_heats.0.0.conv.weight",
        "heads.1.bottom_right.heat.2.bias": "br_heats.1.1.bias",
        "heads.1.bottom_right.embedding.2.weight": "br_tags.1.1.weight",
        "heads.0.top_left.offset.0.bias": "tl_regrs.0.0.conv.bias",
    }.items():
        assert loaded[ours].flatten()[0].item() == numbers[f"module.{theirs}"], ours


def test_the_original_s_weights_load_and_turn_blue_green_red() -> None:
    detector = small()
    shapes = official_parameters((16, 16, 24), (1, 1, 1), stem=16, width=32, pooled=16, num_classes=3)
    state = {name: torch.rand(shape, dtype=torch.float64) for name, shape in shapes.items()}
    load_weights(detector, state, layout="cornernet")
    loaded = detector.state_dict()
    assert torch.equal(loaded["trunk.stem.0.conv.weight"], state["module.pre.0.conv.weight"][:, [2, 1, 0]])
    assert torch.equal(loaded["heads.1.bottom_right.heat.2.weight"], state["module.br_heats.1.1.weight"])


def test_weights_that_do_not_fit_are_refused() -> None:
    state = {name: torch.zeros(shape) for name, shape in official_parameters().items() if name.startswith("module.pre")}
    with pytest.raises(InputError, match=r"trunk\.stem\.0\.conv\.weight has shape \(128, 3, 7, 7\)"):
        load_weights(small(), state, layout="cornernet")
    with pytest.raises(InputError, match="need a CornerNet with trunk hourglass"):
        load_weights(CornerNet(3, trunk="resnet10t", channels=32), state, layout="cornernet")
