"""What is measured on: a normally trained model, and the first test images that it classifies correctly."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nbsupport import data, models, presets, runtime, suite, train
from nbsupport.bench.measure import Narrator, Subject

EPOCHS, TRAIN_N = {"digits": 8, "mnist": 2}, {"digits": 1297, "mnist": 20000}
_BY_SHAPE = {(1, 8, 8): "digits", (1, 28, 28): "mnist", (3, 32, 32): "cifar10"}
_VALIDATION = 500  # test images that the better epoch is chosen by


def obtain(images: int, model: Path | None, narrator: Narrator) -> Subject:
    """Return the subject with at most `images` images.

    Parameters
    ----------
    images : int
        Correctly classified test images wanted.
    model : Path, optional
        A file of `models.save`; the data set is the one of its image size. None: a model is trained for some
        seconds, on MNIST where $NBSUPPORT_DATA has it, else on the embedded digits.
    narrator : Narrator
        Told what is trained, and for how long.

    Raises
    ------
    ValueError
        For a model of another image size, or one that classifies no image correctly.
    FileNotFoundError
        Where `model`, or the data set that it needs, is not there.
    """
    device = runtime.best_device()
    if model is None:
        s = presets.settings("mnist" if _mnist_is_here() else "digits")
        net = _trained(s, narrator)
    else:
        net = models.load(model).to(device)
        shape = vars(net)["spec"].in_shape
        if shape not in _BY_SHAPE:
            known = ", ".join(f"{'x'.join(map(str, size))} ({name})" for size, name in _BY_SHAPE.items())
            raise ValueError(f"expected a model for images of {known}, got {'x'.join(map(str, shape))} in {model}")
        s = presets.settings(_BY_SHAPE[shape])
    test = data.load(s.dataset, train=False, limit=max(_VALIDATION, 2 * images))
    keep = (runtime.predict(net, test.x).cpu() == test.y).nonzero().squeeze(1)[:images]
    if not len(keep):
        raise ValueError(f"expected a model that classifies images of {s.dataset}, got one that is never right")
    x, y = test.x[keep].to(device), test.y[keep].to(device)
    return Subject(f"{vars(net)['spec'].name} on {s.dataset}", net, x, y, s, forward_flops(net, x[:1]))


def forward_flops(model: nn.Module, x: Tensor) -> float:
    """Return the FLOP of convolutions and matrix products in one forward pass of `x` (1, C, H, W)."""
    with FlopCounterMode(display=False) as counter, runtime.frozen(model), torch.no_grad():
        model(runtime.laid_out(model, x))
    return float(counter.get_total_flops())


def _mnist_is_here() -> bool:
    """Return whether $NBSUPPORT_DATA names a folder with MNIST: a benchmark downloads nothing unasked."""
    named = os.environ.get("NBSUPPORT_DATA")
    return named is not None and (Path(named).expanduser() / "MNIST" / "raw").is_dir()


def _trained(s: presets.Settings, narrator: Narrator) -> nn.Module:
    """Return a normally trained model of a data set in `EPOCHS`."""
    fitted = data.load(s.dataset, train=True, limit=TRAIN_N[s.dataset])
    validation = data.load(s.dataset, train=False, limit=_VALIDATION)
    model, epochs = suite.new_model(s, fitted), EPOCHS[s.dataset]
    batches = epochs * math.ceil(len(fitted) / s.batch_size)
    narrator.say(f"{s.model} is trained on {len(fitted):,} images of {s.dataset}, {epochs} epochs, {batches} batches")
    tick = narrator.ticker("training", batches, "batches")
    recipe: dict[str, Any] = {"batch_size": s.batch_size, "lr": s.lr, "weight_decay": s.weight_decay}
    recipe |= {"generator": runtime.seeded(0, "bench"), "progress": lambda done, total: tick(done)}
    train.fit(model, fitted, epochs=epochs, validation=validation, **recipe)
    return model.eval()
