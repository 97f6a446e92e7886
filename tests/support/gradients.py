"""Compares the gradients of listed layers with an independent gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from families import CLASSES, FAMILIES
from segproof.explain.forward_pass import capture
from segproof.explain.methods import METHODS
from segproof.explain.target import Target
from segproof.models.contract import SegmentationModel

# layers that are not [N, C, h, w], as the packages' sources have them: [N, h, w, C] ("last"), or
# [N, L, C] with that many tokens (class, register and query tokens) before the grid
LAYOUTS: dict[tuple[str, str], Any] = {
    ("smp-UPerNet-swin", "encoder.model.layers_"): "last",
    ("smp-DPT-vit", "encoder.model.blocks."): 1,
    ("hf-Segformer", "decode_head.linear_projections."): 0,
    ("hf-UperNet", "backbone.hidden_states_norms."): 0,
    ("hf-Mask2Former", "model.pixel_level_module.encoder.hidden_states_norms."): 0,
    ("hf-MaskFormer", "model.pixel_level_module.encoder.hidden_states_norms."): 0,
    ("hf-UperNet-dinov2", "backbone.layernorm"): 1,
    ("hf-Beit", "beit.layers."): 1,
    ("hf-Data2VecVision", "data2vec_vision.encoder.layer."): 1,
    ("hf-DPT", "dpt"): 1,
    ("hf-Tipsv2Dpt", "backbone"): 2,
    ("hf-Sapiens2", "model"): 9,
    ("hf-Eomt", "layernorm"): 10,
    ("hf-EomtDinov3", "layernorm"): 10,
}


def first_tensor(result: Any) -> Tensor:
    if isinstance(result, Tensor):
        return result
    values = list(result) if isinstance(result, list | tuple) else list(result.values())
    found = [value for value in values if isinstance(value, Tensor)]
    return found[0] if found else first_tensor(values[0])


def swapped(result: Any, old: Any, new: Any) -> Any:
    """The result with `new` in place of `old`, for tensors, tuples and dicts of transformers."""
    if result is old:
        return new
    if isinstance(result, tuple):
        return tuple(swapped(value, old, new) for value in result)
    if not isinstance(result, dict):
        return result
    for name, value in result.items():
        result[name] = swapped(value, old, new)
    return result


def independent(
    model: SegmentationModel, path: str, image: Tensor, box: tuple[int, int, int, int], class_: int
) -> tuple[Tensor, Tensor]:
    """What the module returns in its last run, and the slope of the mean logit over the box there:
    its forward returns its own output as a leaf.
    """
    module = model.net.get_submodule(path)
    plain: Any = module.forward
    leaves: list[Tensor] = []

    def forward(*given: Any, **named: Any) -> Any:
        result = plain(*given, **named)
        value = first_tensor(result)
        leaves.append(value.detach().requires_grad_())
        return swapped(result, value, leaves[-1].clone())

    module.forward = forward
    try:
        y0, y1, x0, x1 = box
        score = model(image)[0, class_, y0:y1, x0:x1].mean()
    finally:
        del module.forward
    if not score.requires_grad:
        return leaves[-1].detach(), torch.zeros_like(leaves[-1])
    slope: Tensor | None = torch.autograd.grad(score, leaves[-1:], allow_unused=True)[0]
    return leaves[-1].detach(), torch.zeros_like(leaves[-1]) if slope is None else slope


def picture_of(value: Tensor, layout: Any, size: tuple[int, int]) -> Tensor:
    """[C, h, w] of one picture's result, cell by cell."""
    if layout == "first":
        return value[0]
    if layout == "last":
        return torch.stack([value[0, :, :, k] for k in range(value.shape[3])])
    cells = value.shape[1] - layout
    width = round((cells * size[1] / size[0]) ** 0.5)
    rows = [value[0, layout + start : layout + start + width] for start in range(0, cells, width)]
    return torch.stack([row.T for row in rows], dim=1)


def raw_map(method: str, seen: Any, path: str, model: SegmentationModel) -> Tensor:
    made: Any = METHODS[method](seen, path, model)
    values: Tensor = made.values
    return values


def cosine(a: Tensor, b: Tensor) -> float:
    if not a.any() and not b.any():
        return 1.0
    return float((a.double() * b.double()).sum() / (a.double().norm() * b.double().norm()))


@dataclass(frozen=True)
class Compared:
    """One layer against the independent reading: lowest cosine, whether calls repeat themselves."""

    path: str
    axes: str
    decided: str
    cosine: float
    maps: float
    same: bool


def compare(name: str, size: tuple[int, int], class_: int = 1) -> list[Compared]:
    """Every listed layer of a family on one picture, on the first and on the second call."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = SegmentationModel(
        family.make(), classes=CLASSES, mean=[0.5] * 3, std=[0.25] * 3, output=family.output
    ).eval()
    model.requires_grad_(False).double()  # mean slopes may cancel to what float32 rounds to
    draw = torch.Generator().manual_seed(1)
    height, width = size
    image = torch.rand(1, 3, height, width, generator=draw).double()
    box = (height // 4, 3 * height // 4, width // 8, width // 2)
    truth = torch.zeros(1, height, width, dtype=torch.bool)
    truth[:, box[0] : box[1], box[2] : box[3]] = True
    target = Target(CLASSES[class_], region="truth")
    layers = model.layers(size)
    paths = list(dict.fromkeys(layer.path for layer in layers))
    calls = [capture(model, image, target, paths, truth) for _ in range(2)]
    found = []
    for layer in {layer.path: layer for layer in layers}.values():
        path = layer.path
        kinds = [
            kind for (of, start), kind in LAYOUTS.items() if of == name and path.startswith(start)
        ]
        layout = kinds[0] if kinds else "first"
        value, slope = independent(model, path, image, box, class_)
        A, D = (picture_of(one, layout, size) for one in (value, slope))
        assert A.shape == (layer.channels, *layer.size), path
        literal = {
            "grad_cam": sum(D[k].mean() * A[k] for k in range(len(A))),
            "hires_cam": sum(D[k] * A[k] for k in range(len(A))),
        }
        cosines, maps = [], []
        for one in calls:
            assert cosine(one.activations[path][0], A) > 0.9999, path
            cosines.append(cosine(one.gradients[path][0], D))
            for method, wanted in literal.items():
                [got] = raw_map(method, one, path, model)
                assert isinstance(wanted, Tensor)
                maps.append(cosine(got, wanted))
        first, second = (one.gradients[path] for one in calls)
        same = torch.equal(first, second)
        found.append(Compared(path, layer.axes, layer.decided, min(cosines), min(maps), same))
    return found
