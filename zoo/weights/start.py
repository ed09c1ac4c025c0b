"""Start a training from a detector's weights: all that fits is kept, what depends on other classes starts anew."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.detector import Detector
from zoo.detector.checkpoint import build, read_checkpoint
from zoo.errors import InputError
from zoo.models import MODELS
from zoo.nn.frame import FrameConfig
from zoo.nn.pretrained import WeightsWarning, warn_of_pixels
from zoo.ops.matching import BACKGROUND
from zoo.weights.cornernet import from_cornernet
from zoo.weights.darknet import from_darknet
from zoo.weights.load import DARKNET_SUFFIX
from zoo.weights.published import recognise, recognise_darknet
from zoo.weights.state import Layout, State, read_state
from zoo.weights.torchvision import from_torchvision, match_norm_eps

MIN_FITTING = 0.5
"""Share of the weights without classes that a file must have; with fewer it is taken to be of another network."""

COUNTERS = "num_batches_tracked"


@dataclass(frozen=True)
class Start:
    """What a detector took from a file.

    Args:
        file: the file.
        kept: number of tensors that were taken as they are.
        total: number of tensors of the detector.
        renewed: names of the tensors of which some rows start anew, since they belong to classes ...
        new_classes: ... that the file does not know.
        kept_classes: classes whose rows were taken.
        assumed: whether the file's classes have no names, and are taken to be the detector's since they are as many.
    """

    file: str
    kept: int
    total: int
    renewed: list[str]
    new_classes: list[str]
    kept_classes: list[str]
    assumed: bool

    def __str__(self) -> str:
        text = f"weights: {self.kept} of {self.total} tensors from {self.file}"
        if self.renewed:
            kept = f" ({', '.join(self.kept_classes)} keep theirs)" if self.kept_classes else ""
            text += f"; {', '.join(self.renewed)} start anew for {', '.join(self.new_classes)}{kept}"
        if self.assumed:
            text += "; its classes have no names and are taken to be the data's, in their order"
        return text


@dataclass(frozen=True)
class _Source:
    """Parameters of a file under our names, and the detector that it is of, whose own values do not matter."""

    state: State
    detector: Detector
    class_names: Sequence[str] | None  # None where they are not known
    frame: FrameConfig | None  # with the mean and std that it was trained with; None where they are not known


def start_from(
    detector: Detector, file: str | Path, layout: Layout | None = None, follow_pixels: bool = False
) -> Start:
    """Copy a file's weights into a detector, which may have other classes.

    Rows of the outputs of a class are copied where both know the class by name. Tensors that the file does not have in
    the same shape keep their values, and a warning says how many.

    Args:
        detector: unchanged if an error is raised.
        file: a checkpoint or state dict of ours, or a published file; see `zoo.weights.load`.
        layout: of the file; recognised by its content if not given.
        follow_pixels: whether the detector's frame takes the mean and std that the file was trained with; otherwise
            a warning says how far off they are.

    Raises:
        InputError: the file cannot be read, or less than half of the weights without classes fit.
    """
    file = Path(file)
    source = _read(file, layout, detector)
    labels, assumed = _match_classes(source.class_names, source.detector.num_classes, detector.class_names)
    found = _collect(detector, source, labels)
    _check_share(found, detector, file)
    _warn_of_rest(found, file)
    if source.frame is not None and source.frame.mean is not None and source.frame.std is not None:
        if follow_pixels:
            detector.set_pixels(source.frame.mean, source.frame.std)
        warn_of_pixels(detector.frame.config, source.frame.mean, source.frame.std, str(file))
    detector.load_state_dict(found.new, strict=False)
    known = set(labels.values()) if found.is_comparable else set()
    return Start(
        file=str(file),
        kept=len(found.new) - len(found.renewed),
        total=len(detector.state_dict()),
        renewed=found.renewed,
        new_classes=[name for label, name in enumerate(detector.class_names) if label not in known],
        kept_classes=[name for label, name in enumerate(detector.class_names) if label in known],
        assumed=assumed and not found.renewed,
    )


@dataclass(frozen=True)
class _Found:
    """What a file has of a detector's tensors."""

    new: State  # to be loaded
    renewed: list[str]  # of these, the tensors of which not all rows are the file's
    missing: list[str]  # other tensors that the file does not have in their shape
    unused: list[str]  # tensors that the detector does not have
    is_comparable: bool  # whether the outputs of all classes have the same form in both


def _collect(detector: Detector, source: _Source, labels: Mapping[int, int]) -> _Found:
    state, ours, theirs = detector.state_dict(), _rows(detector), _rows(source.detector)
    unused = [name for name in source.state if name not in state and not name.endswith(COUNTERS)]
    found = _Found({}, [], [], unused, True)
    for name, tensor in state.items():
        given = source.state.get(name)
        if name in ours:
            mixed = _mix_rows(tensor, given, ours[name], theirs.get(name), labels)
            found = replace(found, is_comparable=found.is_comparable and mixed is not None)
            found.new[name], is_whole = mixed or (tensor, False)
            if not is_whole:
                found.renewed.append(name)
        elif given is not None and given.shape == tensor.shape:
            found.new[name] = given
        elif not name.endswith(COUNTERS):
            found.missing.append(name)
    return found


# ------------------------------------------------------------------------------------------------------------- reading


def _read(file: Path, layout: Layout | None, detector: Detector) -> _Source:
    if layout == "darknet" or (layout is None and file.suffix == DARKNET_SUFFIX):
        released = recognise_darknet(file)
        template = released.build()
        return _Source(from_darknet(file, template), template, released.class_names, template.frame.config)
    state = read_state(file)
    published = recognise(state)
    if layout not in (None, "zoo") and (published is None or published.layout != layout):
        raise InputError(f"is not a file of layout {layout}", file)
    if layout == "zoo" or published is None:
        return _read_own(file, state, detector)
    template = _with_classes(detector, published.num_classes, published.class_names)
    with torch.device("meta"):
        frame = published.build().frame.config
    if published.layout == "cornernet":
        return _Source(from_cornernet(state, template, str(file)), template, published.class_names, frame)
    state = _adapt_variances(from_torchvision(state, template, str(file)), template, published.norm_eps)
    return _Source(state, template, published.class_names, frame)


def _adapt_variances(state: State, template: Detector, norm_eps: float) -> State:
    """The state dict with the trunk's variances for our epsilon; the template then holds its values."""
    fitting = {name: state[name] for name, own in template.state_dict().items() if _shape(state.get(name)) == own.shape}
    template.load_state_dict(fitting, strict=False)
    match_norm_eps(template, norm_eps)
    adapted = template.state_dict()
    return state | {name: adapted[name] for name in fitting}


def _read_own(file: Path, state: State, detector: Detector) -> _Source:
    """A checkpoint, which knows its detector and classes, or a state dict, taken to be of such a detector as this."""
    try:
        recorded = read_checkpoint(file)["detector"]
    except InputError:
        return _Source(state, detector, None, None)
    kinds = {kind.__name__: kind for kind in (*MODELS.values(), type(detector))}
    if recorded["class"] not in kinds:
        raise InputError(f"has a detector {recorded['class']!r}; expected one of {', '.join(kinds)}", file)
    template = build(kinds[recorded["class"]], recorded["arguments"])
    return _Source(state, template, template.class_names, template.frame.config)


def _with_classes(detector: Detector, num_classes: int, class_names: Sequence[str] | None) -> Detector:
    """Another detector of the same form, with the classes of a file."""
    names = [str(label) for label in range(num_classes)] if class_names is None else list(class_names)
    arguments: dict[str, Any] = {**detector.arguments, "num_classes": num_classes, "class_names": names}
    return build(type(detector), arguments)


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape


# ------------------------------------------------------------------------------------------------------------- classes


def _match_classes(theirs: Sequence[str] | None, their_number: int, ours: Sequence[str]) -> tuple[dict[int, int], bool]:
    """Label of a file -> label of the detector, of the classes that both know; and whether that is a guess."""
    if theirs is None:
        is_same = their_number == len(ours)
        pairs = {label: label for label in range(their_number)} if is_same else {}
        return pairs | {BACKGROUND: BACKGROUND}, is_same
    known = {name.strip().casefold(): label for label, name in enumerate(ours)}
    pairs = {
        label: known[name.strip().casefold()] for label, name in enumerate(theirs) if name.strip().casefold() in known
    }
    return pairs | {BACKGROUND: BACKGROUND}, False


def _rows(detector: Detector) -> dict[str, list[int]]:
    """Class of each row of the tensors that depend on the classes, by the tensors' names."""
    declared = detector.class_rows()
    found = {}
    for name in detector.state_dict():
        rows = declared.get(name, declared.get(name.rpartition(".")[0]))
        if rows is not None:
            found[name] = rows
    return found


def _mix_rows(
    own: Tensor, given: Tensor | None, our_rows: list[int], their_rows: list[int] | None, labels: Mapping[int, int]
) -> tuple[Tensor, bool] | None:
    """The tensor with the rows of known classes from the file, and whether these are all; None for other shapes."""
    if (
        given is None
        or their_rows is None
        or given.shape[1:] != own.shape[1:]
        or len(given) != len(their_rows)
        or not _same_outputs(our_rows, their_rows)
    ):
        return None
    places = {}  # (our class, how many outputs of it came before) -> row of the file
    for row, (label, before) in enumerate(_count_outputs(their_rows)):
        if label in labels:
            places[labels[label], before] = row
    mixed, is_whole = own.clone(), True
    for row, output in enumerate(_count_outputs(our_rows)):
        if output in places:
            mixed[row] = given[places[output]]
        else:
            is_whole = False
    return mixed, is_whole


def _count_outputs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Class of each row, and how many rows of this class come before it."""
    seen: Counter[int] = Counter()
    outputs = []
    for label in rows:
        outputs.append((label, seen[label]))
        seen[label] += 1
    return outputs


def _same_outputs(ours: Sequence[int], theirs: Sequence[int]) -> bool:
    """Whether a class has as many rows in both, and the rows without a class are as many."""
    (our_rest, our_each), (their_rest, their_each) = _outputs_each(ours), _outputs_each(theirs)
    return our_rest == their_rest and our_each == their_each


def _outputs_each(rows: Sequence[int]) -> tuple[int, set[int]]:
    counts = Counter(rows)
    return counts.pop(BACKGROUND, 0), set(counts.values())


# ------------------------------------------------------------------------------------------------------------ checking


def _check_share(found: _Found, detector: Detector, file: Path) -> None:
    classes = _rows(detector)
    weights = [name for name, tensor in detector.state_dict().items() if tensor.ndim > 1 and name not in classes]
    fitting = sum(name in found.new for name in weights)
    if fitting < MIN_FITTING * len(weights) or not fitting:
        kind, trunk = type(detector).__name__, detector.arguments.get("trunk")
        raise InputError(
            f"is of another network: of the {len(weights)} weights of this {kind} with trunk {trunk!r} that do not "
            f"depend on the classes, {fitting} fit; give the model that the file is of (--model, see zoo models); "
            "weights of a trunk alone are given by --model.pretrained",
            file,
        )


def _warn_of_rest(found: _Found, file: Path) -> None:
    parts = []
    if found.missing:
        shapes = "in their shapes, which start anew"
        parts.append(f"lacks {len(found.missing)} tensors of the detector {shapes} ({found.missing[0]} ...)")
    if found.unused:
        parts.append(f"has {len(found.unused)} tensors that the detector does not have ({found.unused[0]} ...)")
    if parts:
        warnings.warn(f"{file}: {', and '.join(parts)}", WeightsWarning, stacklevel=3)
