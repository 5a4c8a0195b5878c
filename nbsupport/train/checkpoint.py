"""The state of training, stored after every epoch and found again."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbsupport import files


class Training:
    """What a checkpoint holds: weights, optimiser, random state, history, and the best epoch's weights."""

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        generator: torch.Generator | None,
        settings: dict[str, Any],
    ) -> None:
        self.model, self.optimiser, self.settings = model, optimiser, settings
        self.generator = torch.default_generator if generator is None else generator
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_score = -math.inf

    def keep(self, row: dict[str, float], *, score: float) -> None:
        """Add an epoch to the history; of epochs with the same score the later is the better."""
        self.rows.append(row)
        if score >= self.best_score:
            self.best_score = score
            self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def save(self, path: Path) -> None:
        """Write the checkpoint, led by the SHA-256 of the rest: `torch.load` does not notice a changed byte."""
        state = {
            "settings": self.settings,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "rows": self.rows,
            "best": self.best,
            "best_score": self.best_score,
        }
        torch.save(state, buffer := io.BytesIO())
        with files.replacing(path) as file:
            file.write(hashlib.sha256(buffer.getvalue()).digest())
            file.write(buffer.getvalue())

    def resume(self, path: Path) -> None:
        """Continue from the checkpoint `path`, where there is a whole one."""
        if not path.exists():
            return
        data = path.read_bytes()
        try:
            if hashlib.sha256(data[32:]).digest() != data[:32]:
                raise RuntimeError("its checksum differs")
            state = torch.load(io.BytesIO(data[32:]), map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            print(f"damaged, training starts anew: {path} ({error})")
            return
        differing = [
            f"{name}: {state['settings'].get(name)!r} -> {value!r}"
            for name, value in self.settings.items()
            if state["settings"].get(name) != value
        ]
        if differing:
            raise ValueError(
                f"expected a checkpoint of these settings, got others in {path} ({', '.join(differing)}); "
                "delete it or name another"
            )
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(f"expected a checkpoint of this model, got another in {path}: {error}") from None
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.rows, self.best, self.best_score = state["rows"], state["best"], state["best_score"]
