"""Reads the state of a process and a network that a call may not change."""

from __future__ import annotations

import hashlib
import random
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from segproof.models import SegmentationModel
from segproof.testing.toys import LAYERS

__all__ = ["FACTS", "changes", "facts", "unsettle"]


# --- what a call may not change -------------------------------------------------------------------
FACTS: Final = (
    "weights",
    "modes",
    "requires_grad",
    "grad",
    "hooks",
    "modules",
    "torch_rng",
    "numpy_rng",
    "python_rng",
    "inputs",
    "grad_mode",
    "flags",
)
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def facts(model: nn.Module, *inputs: Tensor) -> dict[str, Any]:
    """The twelve kinds of state that a call has to leave as they are, as one comparable record.

    Weights and buffers, mode, `requires_grad`, `.grad`, hooks and class of every module, random
    states of torch, numpy and Python, the `inputs`, gradient mode, global flags: see `FACTS`.
    """
    named = list(model.named_modules())
    parameters = list(model.named_parameters())
    generators = [torch.get_rng_state()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # not typed in torch
        generators += torch.cuda.get_rng_state_all()
    return {
        "weights": _digest(*(value for _, value in (*parameters, *model.named_buffers()))),
        "modes": {name: module.training for name, module in named},
        "requires_grad": {name: value.requires_grad for name, value in parameters},
        "grad": {
            name: None if value.grad is None else _digest(value.grad) for name, value in parameters
        },
        "hooks": {name: [list(getattr(module, kind)) for kind in _HOOKS] for name, module in named},
        "modules": [(type(module).__name__, vars(module).get("forward")) for _, module in named],
        "torch_rng": _digest(*generators),
        "numpy_rng": _numpy_state(),
        "python_rng": hash(random.getstate()),
        "inputs": [(_digest(value), value.requires_grad, value.grad is None) for value in inputs],
        "grad_mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "flags": (
            torch.is_anomaly_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.get_default_dtype(),
            torch.get_num_threads(),
        ),
    }


def _numpy_state() -> object:
    state: Any = np.random.get_state()  # noqa: NPY002  # the global one is what counts
    # the usual generator's state is a long array, which would be slow to print
    return (state[1].tobytes(), *state[2:]) if isinstance(state, tuple) else repr(state)


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for value in tensors:
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The kinds of state that differ between two records of `facts`."""
    return [name for name in FACTS if before[name] != after[name]]


def unsettle(model: SegmentationModel) -> None:
    """Bring a toy model into the middle of someone's training: mixed modes, flags, gradients, a
    hook.
    """
    model.train()
    for k, module in enumerate(model.net.modules()):
        # those that act otherwise in training are all in training
        module.training = k % 2 == 0 or isinstance(module, nn.BatchNorm2d | nn.Dropout)
    for k, value in enumerate(model.parameters()):
        value.requires_grad_(k % 3 != 0)
        if k % 3 == 1:
            value.grad = torch.full_like(value, 0.25)
    model.net.get_submodule(LAYERS[0]).register_forward_hook(lambda m, i, o: None)
