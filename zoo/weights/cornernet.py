"""Convert state dicts of the original CornerNet to ours."""

from zoo.detector import Detector
from zoo.errors import InputError
from zoo.models.cornernet import CornerNet
from zoo.weights.state import State, rename


def from_cornernet(state: State, detector: Detector, file: str | None = None) -> State:
    """Parameters of princeton-vl/CornerNet's files (`CornerNet_500000.pkl`) under our names.

    For a CornerNet with `trunk: hourglass` and otherwise the default architecture, COCO's 80 classes as labels 0..79 in
    the order of their ids, and the mean and std of `configs/models/cornernet_hourglass104.yaml`. The original code
    reads images as BGR; the first convolution's input channels are reordered to RGB. Its names:

        module.pre.0, .1                  stem: convolution, residual
        module.kps.S                      hourglass of stack S; in it up1, low1, low2, low3: skip, down, inner, up
        module.cnvs.S                     output of stack S
        module.inters_.S, cnvs_.S         1x1 convolutions of its input and output, whose sum goes through
        module.inters.S                   a residual into stack S + 1
        module.tl_cnvs.S                  corner pooling; in it p1_conv1, p2_conv1: pooled along columns, rows
        module.tl_heats.S, _tags, _regrs  heat maps, embeddings, offsets; and br_ for the bottom-right corner

    Raises:
        InputError: the detector is not a CornerNet with an hourglass trunk.
    """
    if not isinstance(detector, CornerNet) or detector.arguments["trunk"] != "hourglass":
        raise InputError("weights of the original CornerNet need a CornerNet with trunk hourglass", file)
    corners = {"tl": "top_left", "br": "bottom_right"}
    parts = {"cnvs": "pooling", "heats": "heat", "tags": "embedding", "regrs": "offset"}
    state = rename(
        state,
        [
            (r"^module\.", ""),
            (r"^pre\.", "trunk.stem."),
            (r"^kps\.", "trunk.hourglasses."),
            (r"^cnvs\.", "trunk.outputs."),
            (r"^inters_\.", "trunk.from_inputs."),
            (r"^cnvs_\.", "trunk.from_outputs."),
            (r"^inters\.", "trunk.merged."),
            (r"\.up1(?=\.)", ".skip"),
            (r"\.low1(?=\.)", ".down"),
            (r"\.low2(?=\.)", ".inner"),
            (r"\.low3(?=\.)", ".up"),
            (r"^(tl|br)_(cnvs|heats|tags|regrs)\.(\d+)\.", lambda m: f"heads.{m[3]}.{corners[m[1]]}.{parts[m[2]]}."),
            (r"\.(heat|embedding|offset)\.1\.", r".\1.2."),
            (r"\.(heat|embedding|offset)\.0\.conv\.", r".\1.0."),
            (r"\.pooling\.p1_conv1\.", ".pooling.vertical."),
            (r"\.pooling\.p2_conv1\.", ".pooling.horizontal."),
            (r"\.pooling\.p_conv1\.", ".pooling.pooled.0."),
            (r"\.pooling\.p_bn1\.", ".pooling.pooled.1."),
            (r"\.pooling\.conv1\.", ".pooling.shortcut.0."),
            (r"\.pooling\.bn1\.", ".pooling.shortcut.1."),
            (r"\.pooling\.conv2\.", ".pooling.output."),
        ],
    )
    first = "trunk.stem.0.conv.weight"
    if first in state:
        state[first] = state[first].flip(1)
    return state
