"""When the linear heads are fitted in a training, in one process and in two."""

from pathlib import Path

import pytest
import pytorch_lightning.callbacks.timer
import torch
from clock import Clock
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from rcnn_scenes import Scenes, build, collate, fit, make_loader

import zoo
from zoo.models.rcnn import RCNN
from zoo.nn.head_fitting import fit_linear_heads


def make_trainer(folder: Path, **arguments: object) -> Trainer:
    return Trainer(  # type: ignore[arg-type]
        **{
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "default_root_dir": folder,
        }
        | arguments
    )


class Watch(pytorch_lightning.Callback):
    """Whether heads were fitted as each validation's first batch came; a step takes a second of the clock."""

    def __init__(self, clock: Clock) -> None:
        self.validated: list[bool] = []
        self.clock = clock

    def on_train_batch_start(self, *_: object) -> None:
        self.clock.now += 1

    def on_validation_batch_start(self, trainer: Trainer, pl_module: RCNN, *_: object) -> None:
        self.validated.append(bool(pl_module.linear_heads.fitted))


@pytest.mark.parametrize("end", [{"max_epochs": 2}, {"max_steps": 5}, {"max_time": {"seconds": 5}, "max_epochs": -1}])
def test_validations_and_the_last_checkpoint_see_fitted_heads(
    tmp_path: Path, end: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the second epoch of three steps, or the step before."""
    clock = Clock()
    monkeypatch.setattr(pytorch_lightning.callbacks.timer, "time", clock)
    detector, watch = build(fit_images=8), Watch(clock)
    last = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = make_trainer(tmp_path, enable_checkpointing=True, callbacks=[watch, last], **end)
    trainer.fit(detector, make_loader(), make_loader(4))
    assert trainer.global_step == (6 if end.get("max_epochs") == 2 else 5)
    # the sanity check comes first, and sees the untrained network
    assert watch.validated[0] is False
    assert all(watch.validated[1:])
    assert zoo.load(tmp_path / "last.ckpt").linear_heads.fitted
    trainer.validate(detector, make_loader(4), verbose=False)
    assert watch.validated[-1] is True


def test_a_training_that_goes_on_forgets_what_was_fitted(tmp_path: Path) -> None:
    detector = build(fit_images=4)
    fit(detector)
    first = ModelCheckpoint(
        tmp_path, filename="step{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False
    )
    trainer = make_trainer(tmp_path, enable_checkpointing=True, callbacks=[first], max_steps=4)
    trainer.fit(detector, make_loader(8), make_loader(4))
    fitted = [bool(zoo.load(tmp_path / f"step{step}.ckpt").linear_heads.fitted) for step in range(1, 5)]
    assert fitted[0] is False, "nor does it keep what a checkpoint brought"
    assert fitted[2] is False, "one step after a validation"
    assert detector.linear_heads.fitted


def test_nothing_is_fitted_for_nothing(tmp_path: Path) -> None:
    detector = build(head="softmax", regress_boxes=False)
    make_trainer(tmp_path, max_steps=1).fit(detector, make_loader(4), make_loader(4))
    assert not detector.linear_heads.fitted


def _fit_in_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    samples = [collate([Scenes(10)[i] for i in range(start + rank, min(start + 4, 10), 2)]) for start in (0, 4, 8)]
    if rank == 1:
        samples = samples[:2]  # the second process runs out of images first
    detector = build().eval()
    fit_linear_heads(detector, iter(samples), 3, report=lambda line: None)
    torch.save(detector.linear_heads.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_fit_what_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_fit_in_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    samples = [collate([Scenes(10)[i] for i in range(start, min(start + 4, 10))]) for start in (0, 4)]
    samples.append(collate([Scenes(10)[8]]))  # the process that ran out had the other one
    detector = build().eval()
    fit_linear_heads(detector, iter(samples), 3, report=lambda line: None)
    for name, alone in detector.linear_heads.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], alone, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_two_processes_of_a_trainer_have_the_same_heads(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, devices=2, strategy="ddp_spawn", max_steps=2)
    detector = build(fit_images=8)
    trainer.fit(detector, make_loader(8, 2))
    assert detector.linear_heads.fitted
