"""`zoo predict`, `zoo export` and `zoo benchmark`: the verbs that need a trained detector."""

import shlex
import sys
from functools import partial
from pathlib import Path

from zoo.cli.exit_codes import FAILED, OK
from zoo.cli.parsers import choose_checkpoint, make_data_parser, make_parser
from zoo.errors import InputError
from zoo.io.files import require_writable

_THRESHOLDS_HELP = "those of best F1 of a run of a comparison, or a YAML or JSON file"
_CHECKPOINT_HELP = "checkpoint of `zoo fit` or `zoo compare`, or a run folder"


def predict(args: list[str]) -> int:
    """`zoo predict`: detect objects in images."""
    parser = make_parser("predict", epilog="Exit code: 0 all images, 1 some were skipped, 2 nothing could be done.")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files, folders of them, and videos")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help=_CHECKPOINT_HELP)
    text = "folder of predictions.json, images.json and the annotated images"
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=text)
    scores = parser.add_mutually_exclusive_group()
    scores.add_argument("--score", type=float, default=0.3, help="minimum score of the detections that are kept (0.3)")
    scores.add_argument("--thresholds", type=Path, metavar="RUN", help=f"minimum scores by class: {_THRESHOLDS_HELP}")
    parser.add_argument("--batch_size", type=int, default=4, help="images per batch (4)")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, ... (auto)")
    parser.add_argument(
        "--devices", type=int, default=1, help="number of devices that the images are divided among (1)"
    )
    parser.add_argument("--precision", default="32-true", help="Lightning's name of a precision (32-true)")
    options = parser.parse_args(args)
    require_writable(options.out)

    from zoo.inference.predict import predict_images
    from zoo.training.trainer import silence_lightning

    silence_lightning()
    done = predict_images(
        choose_checkpoint(options.checkpoint),
        options.images,
        options.out,
        options.thresholds or options.score,
        options.batch_size,
        options.accelerator,
        options.precision,
        options.devices,
    )
    if done is None:  # on processes other than the first
        return OK
    for error in done.skipped:
        print(f"skipped: {error}", file=sys.stderr)
    for video, frames in done.videos.items():
        print(f"{frames} frames: {video}, {video.with_suffix('.json')}")
    total = done.images + len(done.videos) + len(done.skipped)
    skipped = f" ({len(done.skipped)} of {total} skipped)" if done.skipped else ""
    if done.images or not done.videos:
        print(f"{done.images} image{'s' if done.images != 1 else ''}: {options.out}{skipped}")
    return FAILED if done.skipped else OK


def export(args: list[str]) -> int:
    """`zoo export`: export a detector to ONNX."""
    parser = make_parser("export")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help=_CHECKPOINT_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="ONNX file to write")
    text = f"score thresholds by class for the file's metadata: {_THRESHOLDS_HELP}"
    parser.add_argument("--thresholds", type=Path, metavar="RUN", help=text)
    text = "let the file leave out detections below --thresholds"
    parser.add_argument("--apply_thresholds", action="store_true", help=text)
    text = "number of images of equal size that the file takes at once (one image without a batch dimension)"
    parser.add_argument("--batch_size", type=int, metavar="N", help=text)
    options = parser.parse_args(args)
    if options.apply_thresholds and options.thresholds is None:
        raise InputError("--apply_thresholds needs --thresholds")
    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(f"--batch_size is {options.batch_size}; give 1 or more")
    if options.out.parent.is_dir():
        require_writable(options.out)

    from zoo.export.onnx import CHECK_SIZES, export_onnx
    from zoo.training.trainer import silence_lightning

    silence_lightning()
    checkpoint = choose_checkpoint(options.checkpoint)
    check = export_onnx(checkpoint, options.out, options.thresholds, options.apply_thresholds, options.batch_size)
    count = len(CHECK_SIZES) * (options.batch_size or 1)
    print(
        f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB;"
        f" the same {check.num_detections} detections as PyTorch on {count} images,"
        f" boxes within {check.box_difference:.1e} px, scores within {check.score_difference:.1e}"
    )
    if check.note:
        print(f"note: {check.note}")
    return OK


def benchmark(args: list[str]) -> int:
    """`zoo benchmark`: measure the cost of checkpoints."""
    from rich.console import Console

    from zoo.cli.benchmark_tables import print_benchmarks
    from zoo.data.module import DetectionDataModule
    from zoo.experiment.benchmark import benchmark_checkpoints
    from zoo.io.files import encode_json, write_atomically
    from zoo.report.benchmark_results import Benchmarks
    from zoo.training.configuration import instantiate, parse
    from zoo.training.trainer import silence_lightning

    silence_lightning()
    parser = make_data_parser("benchmark")
    parser.add_argument("runs", nargs="*", type=Path, default=[], help="run folders; writes cost.json into each")
    parser.add_argument("--checkpoint", nargs="+", type=Path, default=[], help="checkpoint files, with --data")
    parser.add_argument("--out", type=Path | None, default=None, help="write all measurements to this json file")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8, 32], help="batch sizes to time")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to time each batch size")
    parser.add_argument("--accelerator", type=str | None, default=None, help="cpu, gpu, ... (that of the run, or auto)")
    text = "Lightning's name of a precision (that of the run, or 32-true)"
    parser.add_argument("--precision", type=str | None, default=None, help=text)
    parser.add_lightning_class_args(DetectionDataModule, "data")
    built = instantiate(parser, parse(parser, args))
    if built.out is not None:
        require_writable(built.out)
    benchmarks = benchmark_checkpoints(
        built.runs,
        [choose_checkpoint(path) for path in built.checkpoint],
        built.data,
        built.batch_sizes,
        built.seconds,
        built.accelerator,
        built.precision,
        log=partial(print, file=sys.stderr, flush=True),
    )
    print_benchmarks(benchmarks, Console())
    if built.out is not None:
        write_atomically(built.out, encode_json(Benchmarks(benchmarks, shlex.join(["zoo", "benchmark", *args]))))
    return OK
