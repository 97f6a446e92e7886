"""Seconds of one forward by number format, memory layout, allocator and engine.

    python benchmarks/forward.py [--model smp:DIR] [--size 512] [--batch 4] [--engines]

Without --model: smp Unet resnet34 with random weights. Pictures are random numbers; the best of
five batches after one that warms up. `--engines` adds what could run the network instead of torch
as it is, with the greatest difference of a logit: batch norm folded into the convolutions,
TorchScript frozen, torch.compile frozen (takes a compiler and a minute) and, where it is installed,
OpenVINO (180 MB, no dependency of ours).
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segproof import SegmentationModel, load_model
from segproof.models.precision import EXACT, Kernels, keep_blocks
from segproof.study.speed import forward_seconds
from subjects import random_unet

TRIED = (
    EXACT,
    Kernels("float32", channels_last=True),
    Kernels("bfloat16"),
    Kernels("bfloat16", channels_last=True),
)
HALF = TRIED[-1]


def show(model: SegmentationModel, pictures: Tensor, what: str) -> None:
    """Measure each of TRIED and print it."""
    for kernels in TRIED:
        seconds = forward_seconds(model, kernels, pictures, repeats=5)
        print(f"{what}, {kernels.name}: {1000 * seconds:.0f} ms", flush=True)


def folded(net: nn.Module) -> nn.Module:
    """The network with batch norms folded into the convolutions before them; its own activation
    stays where a batch norm has one.
    """
    before: tuple[str, nn.Module] | None = None
    for name, child in list(net.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before and isinstance(before[1], nn.Conv2d):
            setattr(net, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(net, name, getattr(child, "act", nn.Identity()))
        else:
            folded(child)
        before = (name, child)
    return net


class Engine(nn.Module):
    """Something that runs a network, in a network's place."""

    def __init__(self, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, images: Tensor) -> Any:
        """What it returns for images."""
        return self.run(images)


def scripted(net: nn.Module, pictures: Tensor) -> nn.Module:
    """TorchScript, frozen."""
    traced = torch.jit.trace(net, pictures)  # type: ignore[no-untyped-call]
    frozen = torch.jit.freeze(traced)
    return Engine(lambda images: frozen(images))


def compiled(net: nn.Module) -> Any:
    """torch.compile, weights frozen."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    torch.compiler.reset()
    return torch.compile(net, dynamic=False)


def by_openvino(net: nn.Module, pictures: Tensor, precision: str) -> nn.Module:
    """OpenVINO with as many threads as torch has."""
    import openvino  # type: ignore[import-not-found]

    made = openvino.convert_model(net, example_input=pictures)
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    engine = openvino.Core().compile_model(made, "CPU", settings)
    return Engine(lambda images: torch.from_numpy(engine(images.contiguous().numpy())[0]))


def show_engines(model: SegmentationModel, pictures: Tensor) -> None:
    """Measure the engines in float32 and bfloat16 and print them beside torch's best."""
    net, engine = model.net, copy.copy(model)
    shown = (pictures - model.mean) / model.std

    def line(what: str, make: Callable[[], Any], kernels: Kernels) -> None:
        try:
            with torch.inference_mode():
                engine.net = make()
            seconds = forward_seconds(engine, kernels, pictures, repeats=5)
            with torch.inference_mode():
                off = float((kernels.run(engine.net, shown) - net(shown)).abs().max())
        except Exception as error:  # an engine that cannot run it is a finding, not the end
            print(f"{what}: {str(error).splitlines()[0]}", flush=True)
            return
        print(f"{what}: {1000 * seconds:.0f} ms, logits differ by {off:.1e}", flush=True)

    one = copy.deepcopy(net)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    wide = TRIED[1]
    line("batch norm folded, float32", lambda: folded(copy.deepcopy(net)), EXACT)
    line("batch norm folded, float32, channels last", lambda: folded(copy.deepcopy(last)), wide)
    line("batch norm folded, bfloat16, channels last", lambda: folded(copy.deepcopy(last)), HALF)
    line("TorchScript, float32", lambda: scripted(one, shown), EXACT)
    line("torch.compile, float32", lambda: compiled(one), EXACT)
    line("torch.compile, float32, channels last", lambda: compiled(last), wide)
    line("torch.compile, bfloat16, channels last", lambda: compiled(last), HALF)
    if importlib.util.find_spec("openvino"):
        for precision in ("f32", "bf16"):
            line(f"OpenVINO, {precision}", lambda: by_openvino(one, shown, precision), EXACT)  # noqa: B023


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--model")
    asked.add_argument("--size", type=int, default=512)
    asked.add_argument("--batch", type=int, default=4)
    asked.add_argument("--engines", action="store_true")
    given = asked.parse_args()
    torch.manual_seed(0)
    if given.model:
        model = load_model(given.model)
    else:
        model = random_unet(torch.rand(3, given.size, given.size), 0)
    shape = (given.batch, model.input_bands, given.size, given.size)
    pictures = torch.rand(shape)
    print(f"{torch.get_num_threads()} threads, batches of {given.batch}, {given.size} px")
    show(model, pictures, "as it comes")
    kept = keep_blocks()
    show(model, pictures, "freed blocks kept" if kept else "blocks cannot be kept here")
    if given.engines:
        for weights in model.parameters():
            weights.requires_grad_(False)
        show_engines(model, pictures)


if __name__ == "__main__":
    main()
