"""Classifiers by name, built, saved and loaded: the architectures of the papers, or a user's own factory.

Beside them stand models whose boundary is known exactly.
"""

import importlib
import json
import pickle
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nbsupport import checks, files
from nbsupport.models.analytic import Ball, HalfSpace, Wedge
from nbsupport.models.architectures import DigitsCNN, MnistCNN, ResNet20, WideResNet34

_NESTED = ("state_dict", "model_state_dict", "model", "net")  # under which checkpoints hold the weights
_NETWORKS = {"digits_cnn": DigitsCNN, "mnist_cnn": MnistCNN, "resnet20": ResNet20, "wrn_34_10": WideResNet34}
NAMES = tuple(_NETWORKS)


@dataclass(frozen=True)
class Spec:
    """What a model was built from."""

    name: str
    in_shape: tuple[int, int, int]
    num_classes: int


def build(name: str, *, in_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Return a new model with random weights and its `spec` as an attribute.

    Its weights are in channels-last memory where the class says `channels_last = True` (see `runtime.laid_out`).

    Parameters
    ----------
    name : str
        One of `NAMES`, or `package.module:function` for a factory of your own, which is called with `in_shape` and
        `num_classes` as keywords and returns a module that maps images in [0, 1] to logits.
    in_shape : (C, H, W)
        The shape of one image.
    num_classes : int
        The number of logits.

    Raises
    ------
    ValueError
        For an unknown name (with the close matches), a factory that cannot be imported, or an impossible shape.
    """
    checks.count(num_classes, name="num_classes", low=2)
    if len(in_shape) != 3 or min(in_shape) < 1:
        raise ValueError(f"expected in_shape as (channels, height, width), got {in_shape}")
    if ":" in name:
        module, _, function = name.partition(":")
        try:
            factory = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"expected {name!r} to name a function as package.module:function, got: {error}; "
                "is the module on PYTHONPATH?"
            ) from error
        model: nn.Module = factory(in_shape=in_shape, num_classes=num_classes)
        if not isinstance(model, nn.Module):
            raise ValueError(f"expected {name} to return a torch.nn.Module, got {type(model).__name__}")
    else:
        checks.choice(name, NAMES, name="model")
        model = _NETWORKS[name](in_shape, num_classes)
    channels, height, width = map(int, in_shape)
    vars(model)["spec"] = Spec(name, (channels, height, width), num_classes)
    for parameter in model.parameters():
        if parameter.ndim == 4 and getattr(model, "channels_last", False):
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def save(model: nn.Module, path: str | Path, **metadata: str) -> None:
    """Store a model made by `build` in the safetensors file `path`; the header keeps what it was built from.

    It keeps the texts `metadata` too.

    Raises ValueError for a module that `build` did not make.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, Spec):
        raise ValueError(
            f"expected a model made by models.build, got {type(model).__name__}; "
            "to store your own, build it as 'package.module:function'"
        )
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    built = {"name": spec.name, "in_shape": json.dumps(spec.in_shape), "num_classes": str(spec.num_classes)}
    files.save_tensors(Path(path), state, **{**metadata, **built})


def load(path: str | Path) -> nn.Module:
    """Return the model stored in `path`, on the CPU and in evaluation mode.

    A model of a user's own factory imports that factory. Raises FileNotFoundError, DamagedArtifact for a truncated
    or altered file, and ValueError for one that holds no model or weights that no longer fit.
    """
    state, metadata = files.load_with_metadata(Path(path))
    if not {"name", "in_shape", "num_classes"} <= metadata.keys():
        raise ValueError(f"expected a model stored by models.save, got {path} without its name in the header")
    name, (channels, height, width) = metadata["name"], json.loads(metadata["in_shape"])
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced: no stream shall notice them
        model = build(name, in_shape=(channels, height, width), num_classes=int(metadata["num_classes"]))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"expected {path} to fit what {name} builds now; train it again ({error})") from None
    return model.eval()


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Put the weights in `path`, made anywhere, into `model`.

    The file is a safetensors file, or a state dict written by `torch.save`, also one within a checkpoint, or of a model
    in DataParallel. Nothing in it can execute code.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError
        For a file of another kind, or weights that do not fit the model.
    """
    state = _state(Path(path))
    nested = [state[name] for name in _NESTED if isinstance(state.get(name), Mapping)]
    state = dict(nested[0] if nested else state)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError) as error:
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise ValueError(
            f"expected weights of {type(model).__name__} in {path}, got others; choose the model that they are of "
            f"({reason})"
        ) from None


def _state(path: Path) -> dict[str, Any]:
    """Return what a safetensors file or a file of `torch.save` holds by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"expected a file of weights, found no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...")
        raise ValueError(
            f"expected weights in {path}, as a safetensors file or a state dict of torch.save, got: {reason}"
        ) from None
    if not isinstance(state, Mapping):
        raise ValueError(
            f"expected a state dict in {path}, got {type(state).__name__}; store model.state_dict() with torch.save"
        )
    return dict(state)
