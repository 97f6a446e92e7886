"""What a call may not change, as one comparable record; and ways to fail in the middle."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segproof.model import SegmentationModel
from segproof.target import BoundTarget, Target


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for value in tensors:
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def facts(model: nn.Module, *inputs: Tensor) -> dict[str, Any]:
    """Weights, modes, flags, hooks, random states, inputs: everything that has to stay."""
    return {
        "weights": _digest(*model.state_dict().values()),
        "modes": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: value.requires_grad for name, value in model.named_parameters()},
        "grad": {
            name: None if value.grad is None else _digest(value.grad)
            for name, value in model.named_parameters()
        },
        "hooks": {
            name: [
                list(getattr(module, kind))
                for kind in (
                    "_forward_hooks",
                    "_forward_pre_hooks",
                    "_backward_hooks",
                    "_backward_pre_hooks",
                )
            ]
            for name, module in model.named_modules()
        },
        "forward": {name: vars(module).get("forward") for name, module in model.named_modules()},
        "modules": [type(module).__name__ for module in model.modules()],
        "torch_rng": _digest(torch.get_rng_state()),
        "numpy_rng": hashlib.sha256(repr(np.random.get_state()).encode()).hexdigest(),  # noqa: NPY002
        "python_rng": hash(random.getstate()),
        "inputs": [(_digest(value), value.requires_grad, value.grad is None) for value in inputs],
        "grad_enabled": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
    }


def unsettle(model: SegmentationModel) -> None:
    """A model in the middle of someone's training: mixed modes, flags, gradients and hooks."""
    model.train()
    for k, module in enumerate(model.net.modules()):
        # those that act otherwise in training are all in training
        module.training = k % 2 == 0 or isinstance(module, nn.BatchNorm2d | nn.Dropout)
    for k, value in enumerate(model.parameters()):
        value.requires_grad_(k % 3 != 0)
        if k % 3 == 1:
            value.grad = torch.full_like(value, 0.25)
    model.net.get_submodule("decoder.blocks.0").register_forward_hook(lambda m, i, o: None)


@dataclass
class Fails:
    """Raises `error` in the network after some forwards, in the binding, or in the score."""

    error: type[BaseException]
    raised: int = 0

    def now(self) -> None:
        self.raised += 1
        raise self.error("on purpose")

    @contextmanager
    def network(self, model: SegmentationModel, after: int | None) -> Iterator[None]:
        """The last layer fails at forward number `after` (0 = the first); None: never."""
        head = model.net.get_submodule("segmentation_head")
        calls = 0

        def hook(_module: nn.Module, _inputs: object) -> None:
            nonlocal calls
            calls += 1
            if after is not None and calls > after:
                self.now()

        handle = head.register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def target(self, place: str, real: Target) -> Any:
        """A target that fails when it is bound ("target") or when it is read ("score")."""
        fails = self

        class Bound(BoundTarget):
            def score(self, logits: Tensor) -> Tensor:
                fails.now()
                return logits

        class Failing:
            def bind(self, *arguments: Any, **options: Any) -> BoundTarget:
                if place == "target":
                    fails.now()
                return Bound(**vars(real.bind(*arguments, **options)))

        return Failing()
