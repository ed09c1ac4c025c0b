"""On a GPU: the same losses and detections as on the CPU, and the whole way from training to a report.

They run where CUDA finds a device (`pytest -m gpu`), and are skipped elsewhere.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from forms import FORMS, FRAME
from paths import ROOT
from processes import SECONDS
from scenes import make_image, make_target

import zoo
from zoo.detector import Detector
from zoo.models import MODELS
from zoo.report.results import read_results
from zoo.types import RawBatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture(autouse=True)
def _no_tf32() -> None:
    """Convolutions in TF32 differ from the CPU's in the third digit."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def build(form: str) -> Detector:
    torch.manual_seed(0)
    key, arguments = FORMS[form]
    return MODELS[key](num_classes=3, **({"frame": FRAME} | arguments))


def make_batch(device: str) -> RawBatch:
    """Images of two sizes, with region proposals; a crowd region is among the objects."""
    proposals = torch.tensor([[5.0 * i, 4.0 * i, 6 * i + 30, 4 * i + 40] for i in range(12)])
    targets = [
        make_target([[10, 12, 60, 70], [70, 20, 120, 88]], [0, 2], 7) | {"proposals": proposals},
        make_target([[5, 5, 40, 45], [50, 60, 90, 110]], [1, 1], 9) | {"proposals": proposals[:7]},
    ]
    targets[1]["iscrowd"][0] = True
    images = [make_image(*size, target) for size, target in zip([(96, 128), (130, 97)], targets, strict=True)]
    moved = [{key: value.to(device) for key, value in target.items()} for target in targets]
    return [image.to(device) for image in images], moved


def outputs_of(detector: Detector, device: str) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Losses, and scores of the detections, largest first."""
    detector.to(device).eval()
    with torch.no_grad():
        torch.manual_seed(1)
        losses = {name: float(loss) for name, loss in detector.compute_raw_losses(make_batch(device)).items()}
        found = detector(*make_batch(device))
    return losses, [prediction["scores"].cpu() for prediction in found]


# Losses over sampled anchors and RoIs differ, since the random numbers of a GPU do.
SAMPLED = ("faster_rcnn", "fast_rcnn", "rcnn", "sliding_window")


@pytest.mark.parametrize("form", FORMS)
def test_gpu_and_cpu_give_the_same(form: str) -> None:
    detector = build(form)
    cpu_losses, cpu_scores = outputs_of(detector, "cpu")
    gpu_losses, gpu_scores = outputs_of(detector, "cuda")
    tolerance = 0.3 if FORMS[form][0] in SAMPLED else 1e-3
    assert gpu_losses == pytest.approx(cpu_losses, rel=tolerance, abs=tolerance)
    for on_cpu, on_gpu in zip(cpu_scores, gpu_scores, strict=True):
        # Near-equal scores may change the order of suppression: a few detections more or fewer.
        count = min(len(on_cpu), len(on_gpu))
        assert abs(len(on_cpu) - len(on_gpu)) <= 0.05 * max(len(on_cpu), 20)
        torch.testing.assert_close(on_gpu[:count], on_cpu[:count], rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("form", FORMS)
def test_bf16_step_is_finite_and_near_float32(form: str) -> None:
    detector = build(form)
    detector.configure_model()
    detector.cuda().train()
    losses = {}
    for is_bf16 in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cuda", torch.bfloat16, enabled=is_bf16):
            found = detector.compute_raw_losses(make_batch("cuda"))
        losses[is_bf16] = float(torch.stack(list(found.values())).sum())
    torch.stack(list(found.values())).sum().backward()
    gradients = [parameter.grad for parameter in detector.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert losses[True] == pytest.approx(losses[False], rel=0.1)


def write_trainer(folder: Path, **values: object) -> str:
    file = folder / "trainer.yaml"
    content = {"accelerator": "gpu", "precision": "bf16-mixed", "log_every_n_steps": 1, "max_epochs": 1}
    file.write_text(yaml.safe_dump(content | values))
    return str(file)


def run_zoo(*arguments: str) -> None:
    """In its own process: CUDA, once initialised, does not survive a fork."""
    command = [sys.executable, "-m", "zoo.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


TINY = str(ROOT / "configs" / "models" / "retinanet_tiny.yaml")
SHAPES = ["--data", str(ROOT / "configs" / "data" / "shapes.yaml"), "--data.num_workers", "2"]
for split, num_images in (("train", "64"), ("val", "16"), ("test", "16")):
    SHAPES += [f"--data.{split}.init_args.num_images", num_images]


def test_compare_on_all_gpus_by_nccl_reports_gpu_memory_and_energy(tmp_path: Path) -> None:
    trainer = write_trainer(tmp_path, strategy="ddp", devices=-1)
    run_zoo("compare", "--models", TINY, *SHAPES, "--trainer", trainer, "--out", str(tmp_path / "runs"))
    file = tmp_path / "runs" / "results.json"
    assert torch.cuda.get_device_name() in file.read_text()
    (run,) = read_results(file).runs
    assert run.cost.peak_memory_mb is not None
    assert run.cost.joules_per_image is not None
    assert run.cost.joules_per_image > 0


def test_checkpoint_of_a_gpu_serves_the_cpu(tmp_path: Path) -> None:
    trainer = write_trainer(tmp_path, devices=1)
    run_zoo("fit", "--model", TINY, *SHAPES, "--trainer", trainer, "--out", str(tmp_path / "run"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    detector = zoo.load(checkpoint)
    assert detector.device.type == "cpu"
    image = make_image(96, 128, make_target([[10, 12, 60, 70]], [0]))
    on_cpu = detector(image)["scores"]
    on_gpu = detector.cuda()(image)["scores"].cpu()
    torch.testing.assert_close(on_gpu[:10], on_cpu[:10], rtol=0.02, atol=2e-3)
