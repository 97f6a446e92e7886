"""Semantic mutants: wrong formulas, one textual replacement each, that the fast tests have to kill.

`python tests/support/mutants.py [--only TEXT] [--jobs 2]` copies the package, applies one mutant at
a time and runs the tests of its module on the copy. A mutant whose text is not found exactly once
is an error: the list follows the code. Exit code 1 where one survives.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
LIMIT = 180  # seconds for one mutant; a time-out is no kill, it is reported as one

BROKEN = 99  # exit code of a run that shows nothing

# the most specific tests of each module, first first
TESTS = {
    "explain/cam": ["explain/test_cam"],
    "explain/masked": ["explain/test_masked", "explain/test_cam"],
    "explain/methods": ["explain/test_methods", "explain/test_cam"],
    "explain/target": ["explain/test_regions", "explain/test_target", "explain/test_capture"],
    "models/contract": [
        "models/test_contract",
        "models/loaders/test_adapters",
        "explain/test_capture",
    ],
    "models/outputs": ["models/test_outputs", "models/loaders/test_adapters"],
    "models/inputs": ["models/test_inputs"],
    "explain/forward_pass": ["explain/test_capture"],
    "explain/api": ["explain/test_api", "explain/test_regions", "explain/test_cam"],
    "evidence/credit": ["evidence/test_of_measures"],
    "evidence/of_measures": ["evidence/test_of_measures"],
    "evidence/of_methods": ["evidence/test_of_measures"],
    "evidence/tier_a_constructed": ["evidence/test_tier_a_constructed"],
    "perturb/fills": ["perturb/test_fills"],
    "perturb/regions": ["perturb/test_regions"],
    "measures/pictures": ["measures/test_pictures"],
    "measures/records": ["measures/test_records"],
    "evidence/tier_b_planted": ["evidence/test_tier_b_planted"],
    "evidence/tier_c_marker": ["evidence/test_tier_c_marker"],
    "analysis/basis": ["analysis/test_basis", "analysis/test_verdict"],
    "analysis/names": ["analysis/test_names", "analysis/test_basis", "analysis/test_verdict"],
    "study/pictures": ["study/test_plan"],
    "study/early_stop": ["study/test_early_stop"],
}

Outcome = Literal["killed", "survived", "timed out", "broken"]


@dataclass(frozen=True)
class Mutant:
    """Replaces `old`, which stands once in module `file`, by `new`; `why` it would be wrong."""

    file: str
    old: str
    new: str
    why: str

    def apply(self, text: str) -> str:
        """The source with the fault.

        Raises:
            ValueError: the text to replace does not stand there exactly once.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.file}: {self.old!r} stands there {count} times, not once")
        return text.replace(self.old, self.new)


def _of(file: str, *rows: tuple[str, str, str]) -> list[Mutant]:
    return [Mutant(file, *row) for row in rows]


MUTANTS: list[Mutant] = [
    *_of(
        "study/pictures",
        (
            'fill, reference = "" if whole else row.fill',
            'fill, reference = ""',
            "a picture depends on its fill",
        ),
        (
            "self._alike[row.reference]",
            '""',
            "what is measured of a picture depends on R",
        ),
        (
            "self.count(len(waiting), sum(key is not None for _, key in rows))",
            "self.count(len(waiting), len(waiting))",
            "what is asked for twice is asked for",
        ),
    ),
    *_of(
        "explain/cam",
        (
            "weights = capture.gradients[layer].mean(dim=(2, 3))",
            "weights = capture.gradients[layer].amax(dim=(2, 3))",
            "Grad-CAM weighs with means",
        ),
        (
            "weights = capture.gradients[layer].mean(dim=(2, 3))",
            "weights = capture.gradients[layer].relu().mean(dim=(2, 3))",
            "negative gradients count in Grad-CAM",
        ),
        (
            "weights = capture.gradients[layer].mean(dim=(2, 3))",
            "weights = capture.gradients[layer].abs().mean(dim=(2, 3))",
            "Grad-CAM is signed",
        ),
        (
            'einsum("nk,nkhw->nhw", weights, activations)',
            'einsum("nk,nkhw->nhw", weights, activations.relu())',
            "activations may be negative",
        ),
        (
            "(total * positive).add_(2)",
            "(total * positive).add_(1)",
            "2 D^2 in Grad-CAM++",
        ),
        (
            "total = activation.sum(dim=(2, 3), keepdim=True)",
            "total = activation.mean(dim=(2, 3), keepdim=True)",
            "S is a sum",
        ),
        (
            "denominator = (total * positive)",
            "denominator = (activation * positive)",
            "S is a sum, not the pixel",
        ),
        (
            "positive = slope.relu()",
            "positive = slope",
            "only positive slopes in Grad-CAM++",
        ),
        (
            "torch.where(slope != 0, alpha, 0.0) * slope.relu()",
            "torch.where(slope != 0, alpha, 0.0) * slope",
            "only positive slopes in the published one",
        ),
        (
            "2 * square + total * square * slope + eps",
            "2 * square + total * square + eps",
            "D to the third",
        ),
        (
            "usable = denominator.abs() > TINY * (2 + (total * positive).abs())",
            "usable = denominator != 0",
            "a vanishing denominator",
        ),
        (
            "total = torch.where(total.abs() > TINY * size, total, size)",
            "total = torch.where(total.abs() > TINY * size, total, 1.0)",
            "XGrad-CAM falls back to the sum of |A|",
        ),
        (
            "shares = (slope * activation).sum(dim=(2, 3))",
            "shares = (slope.relu() * activation).sum(dim=(2, 3))",
            "XGrad-CAM counts negative slopes",
        ),
        (
            "(total[..., None, None] + eps)",
            "(total[..., None, None].abs() + eps)",
            "the published XGrad-CAM divides by a signed sum",
        ),
        (
            "RawMap((capture.gradients[layer] * capture.activations[layer]).sum(dim=1))",
            "RawMap((capture.gradients[layer].abs() * capture.activations[layer]).sum(dim=1))",
            "HiRes-CAM is signed",
        ),
        (
            "(capture.gradients[layer].relu() * capture.activations[layer]).sum(dim=1)",
            "(capture.gradients[layer] * capture.activations[layer]).relu().sum(dim=1)",
            "Layer-CAM clips the slope, not the product",
        ),
        (
            "(capture.gradients[layer] * capture.activations[layer]).relu().sum(dim=1)",
            "(capture.gradients[layer] * capture.activations[layer]).sum(dim=1).relu()",
            "element-wise clips before the sum",
        ),
        (
            "pooled.repeat_interleave(window, dim=2).repeat_interleave(window, dim=3)",
            "pooled.repeat(1, 1, window, window)",
            "windows are spread where they were",
        ),
        (
            "pooled = avg_pool2d(slope, window",
            "pooled = avg_pool2d(slope.relu(), window",
            "Seg-XRes-CAM pools signed slopes",
        ),
        (
            "centred = maps.flatten(2) - maps.flatten(2).mean(dim=2, keepdim=True)",
            "centred = maps.flatten(2) - maps.flatten(2).mean(dim=1, keepdim=True)",
            "channels are centred, not pixels",
        ),
        ("eigenvectors[:, -1]", "eigenvectors[:, 0]", "the first principal direction"),
        (
            "covariance += (wide @ wide.T).cpu()",
            "covariance = (wide @ wide.T).cpu()",
            "all blocks of pixels count",
        ),
        (
            "return (wide * (guide - ",
            "return -(wide * (guide - ",
            "the sign agrees with the prediction",
        ),
        (
            "sign = torch.where(sign == 0, agreement((probability * bound.valid).double()), sign)",
            "sign = agreement((probability * bound.valid).double())",
            "the mask decides before the probability",
        ),
        (
            "torch.where(high >= low, 1.0, -1.0)",
            "torch.where(high >= low, -1.0, 1.0)",
            "without a guide the larger excursion is positive",
        ),
        (
            "_principal(capture.gradients[layer].abs() * capture.activations[layer])",
            "_principal(capture.gradients[layer] * capture.activations[layer])",
            "Seg-Eigen-CAM takes |D|",
        ),
        (
            "flip = -projection.amin(dim=(1, 2)) > projection.amax(dim=(1, 2))",
            "flip = -projection.amin(dim=(1, 2)) < projection.amax(dim=(1, 2))",
            "flipped where |min| > max",
        ),
    ),
    *_of(
        "explain/masked",
        (
            "gain = (scores - empty).relu()",
            "gain = scores.relu()",
            "Score-CAM counts the gain over the baseline",
        ),
        (
            "gain = (scores - empty).relu()",
            "gain = (scores - empty).abs()",
            "a mask that lowers Y weighs nothing",
        ),
        (
            "rows.append(scores.softmax(dim=0))",
            "rows.append(scores / scores.sum())",
            "the published weights are a softmax",
        ),
        (
            "torch.lerp(base, image, masks[:, None])",
            "torch.lerp(image, base, masks[:, None])",
            "the mask keeps, not removes",
        ),
        (
            'mode="bilinear", align_corners=published',
            'mode="bilinear", align_corners=False',
            "published masks have aligned corners",
        ),
        (
            'mode="bilinear", align_corners=published',
            'mode="bilinear", align_corners=True',
            "strict masks have half-pixel centres",
        ),
        (
            "return (masks - low) / (high - low + (1e-8",
            "return masks / (high + (1e-8",
            "masks start at 0",
        ),
        (
            "live = (high - low) > floor",
            "live = (high - low) >= floor",
            "a constant channel says nothing",
        ),
        (
            "left -= factor[:, step].square()",
            "left -= 0 * factor[:, step].square()",
            "what the chosen channels explain no longer counts",
        ),
        (
            "covariance[:, pivot] - factor @ factor[pivot]",
            "covariance[:, pivot]",
            "each column is what the pivots before it leave",
        ),
        (
            "owner = (covariance[:, chosen] / size[chosen]).argmax(dim=1)",
            "owner = covariance[:, chosen].argmax(dim=1)",
            "a channel belongs to the one it correlates with, not to the loudest",
        ),
        (
            "rows = (rows - low) / (high - low)",
            "rows = rows - low",
            "channels are compared as the masks that they make",
        ),
        (
            "scores[every] = scores[channels][owner]",
            "pass",
            "every channel takes the score of the one that stands for it",
        ),
        (
            "torch.special.entr(share.double()).sum(dim=1).exp()",
            "torch.special.entr(share.double()).sum(dim=1).exp2()",
            "effective channels are exp of the natural entropy",
        ),
        (
            "drops, size = whole - scores, whole.abs()",
            "drops, size = scores - whole, whole.abs()",
            "what is lost, not what is gained",
        ),
        (
            "drops, size = whole - scores, whole.abs()",
            "drops, size = whole - scores, whole",
            "a negative Y must not turn the map round",
        ),
        (
            "ablated[torch.arange(len(part)), part] = 0",
            "ablated[torch.arange(len(part)), part] = activation[part].mean()",
            "ablated channels are zero",
        ),
        (
            "if drops.abs().max() <= 8 * torch.finfo(activation.dtype).eps * size:",
            "if drops.abs().max() <= 0 * size:",
            "rounding noise is no map",
        ),
    ),
    *_of(
        "explain/methods",
        ('published={"eps": 1e-6}', 'published={"eps": 1e-3}', "the published eps of Grad-CAM++"),
        ('published={"eps": 1e-7}', 'published={"eps": 1e-3}', "the published eps of XGrad-CAM"),
        (
            'published={"weights": "softmax"}',
            'published={"weights": "increase"}',
            "the published weights of Score-CAM",
        ),
    ),
    *_of(
        "explain/target",
        ("return chance >= DECISION", "return chance > DECISION", "0.5 counts"),
        (
            "(before < chance[:, None]).all(dim=1)",
            "(before <= chance[:, None]).all(dim=1)",
            "the first maximum wins, as in argmax",
        ),
        (
            "(after <= chance[:, None]).all(dim=1)",
            "(after < chance[:, None]).all(dim=1)",
            "the first maximum wins, as in argmax",
        ),
        (
            "(self.weights * self._quantity(logits)).sum(dim=(1, 2))",
            "(self.weights * self._quantity(logits)).mean(dim=(1, 2))",
            "Y is the weighted sum",
        ),
        ("- rivals.amax(dim=1)", "- rivals.mean(dim=1)", "the margin is to the strongest rival"),
        (
            "return logits.log_softmax(dim=1)[:, index]",
            "return logits.softmax(dim=1)[:, index]",
            "the logarithm of the probability",
        ),
        (
            "logsigmoid(logits[:, index])",
            "logsigmoid(-logits[:, index])",
            "the probability of the class, not of its absence",
        ),
        (
            "weights = probability[:, index] * inside",
            "weights = inside",
            "the published target is weighted with p",
        ),
        (
            "weights = inside / inside.sum(dim=(1, 2), keepdim=True).clamp(min=1)",
            "weights = inside / inside.sum().clamp(min=1)",
            "the mean is over each picture's region",
        ),
        (
            "probability = probabilities(logits.detach(), model.activation)",
            "probability = probabilities(logits, model.activation)",
            "published weights are detached",
        ),
        (
            "hard_mask(probability, index, model.activation) & valid",
            "hard_mask(probability, index, model.activation)",
            "nothing outside the valid pixels",
        ),
    ),
    *_of(
        "models/contract",
        (
            "module.training = False",
            "module.training = module.training",
            "dropout and batch statistics are off",
        ),
        (
            "for module in training:\n            module.training = True",
            "for module in training[1:]:\n            module.training = True",
            "each module gets its own mode back",
        ),
        (
            "torch.cat([torch.zeros_like(logits), logits], dim=1)",
            "torch.cat([-logits, logits], dim=1)",
            "[0, z], whose softmax is the sigmoid of z",
        ),
        (
            "(images - self.mean) / self.std",
            "images / self.std - self.mean",
            "the mean is in image units",
        ),
    ),
    *_of(
        "models/outputs",
        (
            "scores.clamp_min(torch.finfo(scores.dtype).tiny).log()",
            "scores.clamp_min(torch.finfo(scores.dtype).tiny)",
            "a class map of queries is a logarithm",
        ),
        (
            'return value.log() if activation == "softmax" else value.log() - torch.log1p(-value)',
            "return value.log()",
            "the logit of a probability",
        ),
        (
            "return value - torch.log(-torch.expm1(value))",
            "return value",
            "the logit of the logarithm of a probability",
        ),
        (
            "if not self._below:\n            raise",
            "if False:\n            raise",
            "probabilities are no logits",
        ),
        (
            "if len(inside) > 1:",
            "if len(inside) > 9:",
            "of several outputs none is taken",
        ),
    ),
    *_of(
        "models/inputs",
        (
            "low < DARK * unit or high_ > BRIGHT * unit",
            "high_ > BRIGHT * unit",
            "a normalised picture is refused",
        ),
        (
            "low < DARK * unit or high_ > BRIGHT * unit",
            "low < DARK * unit",
            "a picture of 0-255 is refused by a network of 0-1",
        ),
    ),
    *_of(
        "explain/forward_pass",
        (
            "return with_part(result, value, kept.clone())",
            "return with_part(result, value, kept)",
            "in-place steps behind the layer",
        ),
        (
            "return value if fresh else value.view_as(value)",
            "return value.detach().requires_grad_()",
            "a layer behind another stays in its graph",
        ),
        (
            "if slope is None else slope",
            "if slope is None else slope / len(slope)",
            "a picture's gradients do not depend on the batch",
        ),
        (
            "yield results\n    finally:\n        for handle in handles:",
            "yield results\n    finally:\n        for handle in handles[1:]:",
            "hooks are removed",
        ),
        (
            "if put is None or runs != last:\n            return None",
            "if put is None or runs != 1:\n            return None",
            "a layer that runs twice is replaced in its last run",
        ),
        (
            "value.copy_(new)\n        return None",
            "return with_part(result, value, new)",
            "in-place steps behind a replaced layer",
        ),
        (
            "same = bool(before) and before == _versions(given)",
            "same = bool(before)",
            "a module that changes its input in place is run again",
        ),
        (
            "self._results.append((module, _each(result, Tensor.clone)))",
            "self._results.append((module, result))",
            "in-place steps behind a result that is handed out again",
        ),
    ),
    *_of(
        "explain/api",
        ("else resized / resized.max()", "else resized / resized.sum()", "the maximum is 1"),
        ("positive = raw.relu()", "positive = raw.abs()", "what speaks against is not shown"),
        (
            "high - low <= FLAT * high",
            "high - low <= 0",
            "a map of rounding noise is constant",
        ),
        (
            'interpolate(layered, size=size, mode="bilinear", align_corners=False)',
            'interpolate(layered, size=size, mode="bilinear", align_corners=True)',
            "half-pixel centres",
        ),
        (
            "positive = _min_max(positive)",
            "positive = positive / positive.max()",
            "published maps are min-maxed at the layer's size",
        ),
        (
            "shifted / (1e-7 + shifted.max())",
            "shifted / (1e-2 + shifted.max())",
            "the published eps",
        ),
        ("elif high < 1e-12 or high > 1e12:", "elif high < 0:", "maps of tiny and of huge numbers"),
        (
            "if size[0] < raw.shape[0] or size[1] < raw.shape[1]:",
            "if size[0] < 0:",
            "a peak survives a smaller size",
        ),
        (
            "if not all_finite(raw):",
            "if torch.isnan(raw).any():",
            "infinity is no number either",
        ),
        (
            '"mean": lambda maps: maps.mean(dim=0)',
            '"mean": lambda maps: maps.median(dim=0).values',
            "layers are averaged",
        ),
        (
            "parts = [_resized(item.raw, item.size, preset)[0] for item in explanations]",
            "parts = [item.heatmap() for item in explanations]",
            "published maps are joined before the last scaling",
        ),
    ),
    *_of(
        "perturb/fills",
        (
            "base = fill(images, torch.zeros_like(keep, dtype=torch.bool))",
            "base = fill(images, keep > 0)",
            "b is the fill with nothing kept",
        ),
        (
            "mixed = torch.where(share < 1, share * images + (1 - share) * base, images)",
            "mixed = share * images + (1 - share) * base",
            "a pixel that stays is the picture's own",
        ),
        (
            "torch.where(keep[:, None], images, baseline)",
            "images * keep[:, None] + baseline * ~keep[:, None]",
            "NaN in removed pixels cannot leak",
        ),
        (
            "ground = valid & ~dilate(roofs, OUTLINE)",
            "ground = valid & ~roofs",
            "eaves and shadows are no background",
        ),
        (
            "limit = probability[valid].float().sort().values",
            "limit = probability[valid].float().sort(descending=True).values",
            "the least likely pixels are the background",
        ),
        (
            "mean = clean.image[:, clean.valid].mean(dim=1)",
            "mean = clean.image.flatten(1).mean(dim=1)",
            "nodata has no part in the mean",
        ),
        (
            "if bool((low >= 0).all()) and bool((high <= 1).all()):",
            "if bool((high >= low).all()):",
            "noise in the raster's own units",
        ),
        (
            "source = clean.image[:, clean.background]",
            "source = clean.image[:, clean.valid]",
            "the texture is made of background",
        ),
        (
            "return restored.clamp(low, high)",
            "return restored",
            "no fill leaves the picture's range",
        ),
        (
            "(std[:, None, None] / soft_std.clamp(min=1e-12))",
            "(std[:, None, None] / std[:, None, None])",
            "the deviation is restored after the blur",
        ),
        (
            "kernel = torch.exp(-0.5 * (steps / sigma) ** 2)",
            "kernel = torch.exp(-((steps / sigma) ** 2))",
            "sigma is the deviation of the Gaussian",
        ),
        (
            "max(clean.image.shape[-2:]) / 32",
            "min(clean.image.shape[-2:]) / 32",
            "sigma is 1/32 of the longer side",
        ),
    ),
    *_of(
        "perturb/regions",
        (
            "return distance <= noise.to(region.device)",
            "return distance < noise.to(region.device)",
            "where the noise is 0 the region stays",
        ),
        (
            "distance_transform_edt(~mask)).to(region.device)",
            "distance_transform_cdt(~mask)).to(region.device)",
            "Euclidean: a chessboard reaches farther at corners",
        ),
        (
            'ranks[smooth.ravel().argsort(kind="stable")]',
            'ranks[noise.ravel().argsort(kind="stable")]',
            "smooth noise moves an outline, white noise frays it",
        ),
        (
            '"background_only": lambda: 1 - heatmap',
            '"background_only": lambda: heatmap',
            "M1 removes what is hot",
        ),
        (
            "lambda: torch.where(target, 1.0, heatmap)",
            "lambda: torch.where(target, heatmap, 0.0)",
            "M3 is max(S, R)",
        ),
        ("region = heatmap > limit", "region = heatmap >= limit", "S > t is strict"),
        (
            "return ranks < round(level * total)",
            "return ranks <= round(level * total)",
            "exactly round(q |V|) pixels",
        ),
        (
            "return ranks < round(level * total)",
            "return ranks < int(level * total)",
            "exactly round(q |V|) pixels",
        ),
        (
            "total = heatmap.numel() if valid is None else int(valid.sum())",
            "total = heatmap.numel()",
            "the share is of the valid pixels",
        ),
        (
            '"background_only": lambda region, target: ~region',
            '"background_only": lambda region, target: ~region | target',
            "M1 removes the region whole",
        ),
        (
            '"highlighted_only": lambda region, target: region',
            '"highlighted_only": lambda region, target: region | target',
            "M2 keeps the region alone",
        ),
        (
            '"highlighted_and_target": lambda region, target: region | target',
            '"highlighted_and_target": lambda region, target: region & target',
            "M3 keeps both",
        ),
        (
            "order = shuffled[_falling(flat[shuffled])]",
            "order = _falling(flat)",
            "ties are not taken from the top left",
        ),
        ("flat, -math.inf)", "flat, math.inf)", "invalid pixels come last"),
    ),
    *_of(
        "measures/records",
        (
            'lambda shown: shown.m2["confidence"] - shown.m1["confidence"]',
            'lambda shown: shown.m2["confidence"] + shown.m1["confidence"]',
            "the contrast wants M1 low",
        ),
    ),
    *_of(
        "measures/pictures",
        (
            "part[:, self.bound.class_index].mean(dim=1)",
            "part[:, self.bound.class_index].median(dim=1).values",
            "confidence is a mean",
        ),
        (
            "return spread / math.log(inside.shape[1])",
            "return spread / math.log(2)",
            "entropy is a share of log C",
        ),
        (
            "torch.special.entr(chance) + torch.special.entr(1 - chance)",
            "2 * torch.special.entr(chance)",
            "binary entropy has two terms",
        ),
        (
            "/ math.log2(p.shape[1]) / pixels",
            "/ math.log2(p.shape[1]) / inside.shape[-1]",
            "published entropy is over all pixels",
        ),
        (
            "/ math.log2(p.shape[1]) / pixels",
            "/ pixels",
            "published entropy is over log2 C",
        ),
        ("torch.log2(chance + 1e-30)", "torch.log2(chance + 1e-3)", "the published guard"),
        (
            "region=truth & bound.valid",
            "region=truth",
            "published entropy stays within the valid pixels",
        ),
        (
            "return hard_mask(p, self.bound.class_index, self.bound.activation)",
            "return p[:, self.bound.class_index] > 0.5",
            "kept is decided by argmax",
        ),
        (
            "(unsure * still).sum(dim=1) / still.sum(dim=1)",
            "(unsure * still).mean(dim=1)",
            "the mean is over the kept pixels",
        ),
        (
            "(still * (1 - unsure)).mean(dim=1)",
            "(1 - still * unsure).mean(dim=1)",
            "a collapsed prediction has no certainty",
        ),
        (
            'self._overlap(self._required("iou"))',
            "self._overlap(self.bound.prediction)",
            "IoU is with the truth",
        ),
        (
            "both, total = self._overlap(self.bound.prediction)",
            "both, total = self._overlap(self.bound.region)",
            "IoU with the clean prediction, not with R",
        ),
        ("return 2 * both / total", "return both / total", "Dice of equal masks is 1"),
        (
            "return (self._mask & self.bound.valid).sum(",
            "return self._mask.sum(",
            "nothing outside the valid pixels",
        ),
        (
            "other = other & self.bound.valid",
            "other = other.clone()",
            "nothing outside the valid pixels",
        ),
        (
            'self._overlap(self._required("iou"))\n        return both / (total - both)',
            'self._overlap(self._required("iou"))\n        return both / total',
            "the union counts once",
        ),
        (
            "return [self.p[:, :, self.bound.region[0]].double()]",
            "return [self.p[:, :, self.bound.region[0]]]",
            "float64 decides",
        ),
    ),
    # --- regions, methods without a layer, flips and turns, padding
    *_of(
        "explain/target",
        (
            'if self.kind == "fp":\n            return prediction & ~labelled',
            'if self.kind == "fp":\n            return labelled & ~prediction',
            "false alarms are predicted",
        ),
        ("structure=np.ones((3, 3))", "structure=None", "corners join objects"),
        ("np.argsort(-sizes", "np.argsort(sizes", "object 1 is the largest"),
        (
            "dilate(source, width) & dilate(~source, width) & valid",
            "dilate(source, width) & ~source & valid",
            "a ring lies on both sides",
        ),
        (
            "drawn[:, top:bottom, left:right] = True",
            "drawn[:, left:right, top:bottom] = True",
            "X goes right, Y down",
        ),
        ("drawn[:, y, x] = True", "drawn[:, y - 1, x] = True", "points are where they are said"),
        (
            "return logits[:, index] - logits[:, self.rival]",
            "return logits[:, self.rival] - logits[:, index]",
            "the rival is subtracted",
        ),
        ("return drawn & valid", "return drawn", "boxes and points hold valid pixels only"),
        (
            "labelled = prediction if truth is None else truth & valid",
            "labelled = prediction if truth is None else truth",
            "the truth counts where pixels are valid",
        ),
    ),
    *_of(
        "explain/masked",
        (
            "total / torch.where(usable, shares, 1.0) - mean",
            "total / torch.where(usable, shares, 1.0)",
            "RISE is centred in strict",
        ),
        ("maps.append(total / (masks * keep))", "maps.append(total / masks)", "published RISE"),
        ("grid = torch.rand(cells + 1", "grid = torch.rand(cells", "RISE's grids are shifted"),
        (
            "torch.where(hidden.to(image.device), base, image)",
            "torch.where(hidden.to(image.device), image, base)",
            "occlusion hides the window",
        ),
        ("maps.append(drops / count)", "maps.append(drops)", "occlusion averages windows"),
        (
            "drop = whole - bound.score(model.shown(shown).double())",
            "drop = bound.score(model.shown(shown).double()) - whole",
            "occlusion is positive where Y falls",
        ),
        (
            "*range(0, side - window + 1, stride), side - window}",
            "*range(0, side - window + 1, stride)}",
            "the last windows end at the edge",
        ),
        (
            "return lost * left / size, 1",
            "return lost / size, 1",
            "KWC weighs by the lone channel too",
        ),
        (
            "weighted = weighted_sum(torch.stack(rows).to(activation), activation.abs())",
            "weighted = weighted_sum(torch.stack(rows).to(activation), activation)",
            "KWC sums absolute activations",
        ),
    ),
    *_of(
        "explain/api",
        (
            "raws[place].append(turn.undo(item.raw))",
            "raws[place].append(turn.apply(item.raw))",
            "maps are turned back",
        ),
        (
            "None if base is None else turn.apply(base)",
            "None if base is None else base",
            "the fill is turned with the picture",
        ),
        (
            "bound = clean.bound.edited(turn.apply)",
            "bound = clean.bound.edited(turn.undo)",
            "the region is turned with the picture",
        ),
        (
            "valid = pad_below(valid, padding)",
            "valid = torch.ones(image.shape[-2:], dtype=torch.bool)",
            "padding is not valid",
        ),
        (
            'return pad(image, (0, right, 0, bottom), mode="replicate")',
            'return pad(image, (right, 0, bottom, 0), mode="replicate")',
            "pictures are continued below and to the right",
        ),
        (
            "        if size < min_area:\n            return",
            "        if size <= min_area:\n            return",
            "objects of the smallest size count",
        ),
    ),
    *_of(
        "explain/forward_pass",
        (
            "retain_graph=keep",
            "retain_graph=False",
            "one pass serves many targets",
        ),
    ),
    *_of(
        "evidence/tier_b_planted",
        (
            "if group.has_roof and (group.has_cue or twin):",
            "if group.has_roof:",
            "a lone roof does not count",
        ),
        (
            "(top + along, left - 3 - deep, long, deep),",
            "(top + along, left - deep, long, deep),",
            "a gap parts the cue from its roof",
        ),
        (
            "decoys = beside.copy() if twin else np.zeros_like(beside)",
            "decoys = np.zeros_like(beside)",
            "the cue is a decoy to the twin",
        ),
        (
            "deciding = np.zeros_like(beside) if twin else beside",
            "deciding = beside",
            "the cue decides nothing for the twin",
        ),
        (
            "replace(group, has_roof=False, has_cue=False) for group",
            "replace(group, has_roof=False) for group",
            "the cues are absent too",
        ),
        (
            "(clean - blind)[roof], (changed[0] - clean)[bare]",
            "(clean - blind)[roof], (changed[0] - clean)[roof]",
            "insertion is measured over the roof that is given a cue",
        ),
        (
            "moves = torch.stack([(chance - clean)[roof].abs().mean() for chance in changed])",
            "moves = torch.stack([(chance - clean)[roof].abs().mean() for chance in changed[:1]])",
            "things that change are among the others",
        ),
        (
            "if not (getattr(self, name) >= bound if least else getattr(self, name) <= bound)",
            "if (getattr(self, name) < bound if least else getattr(self, name) > bound)",
            "a figure that is not a number is a miss",
        ),
    ),
    *_of(
        "evidence/tier_c_marker",
        (
            "(1 + r if light else 1 - r) / 2",
            "(1 + r if light else 1) / 2",
            "dark roofs carry the fewer markers",
        ),
        (
            'moves["removal" if is_light else "insertion"]',
            'moves["insertion" if is_light else "removal"]',
            "what is removed is removed from light roofs",
        ),
        (
            "float((chance[1] - chance[0]).mean())",
            "float((chance[0] - chance[1]).mean())",
            "a marker that helps counts as a rise",
        ),
        (
            "right += int((chance[0].mean() >= 0.5) == is_light)",
            "right += int((chance[1].mean() >= 0.5) == is_light)",
            "the bare tile is told right",
        ),
    ),
    *_of(
        "evidence/credit",
        (
            "gain = values[subset | 1 << place] - values[subset]",
            "gain = values[subset | 1 << place]",
            "a Shapley value is a gain",
        ),
        (
            "weight = math.factorial(size) * math.factorial(count - size - 1)",
            "weight = math.factorial(count - 1)",
            "subsets of every size weigh as orders do",
        ),
        (
            "worth[parts[name]] = value / int(parts[name].sum())",
            "worth[parts[name]] = value",
            "a factor's credit is spread over its pixels",
        ),
        (
            "return float((precision * sorted_worth).sum() / worth.sum())",
            "return float((precision * (sorted_worth > 0)).sum() / (worth > 0).sum())",
            "a small cue that decides half counts half",
        ),
    ),
    *_of(
        "evidence/of_measures",
        ("~(region & ~target),", "~region,", "outside drop leaves R as it is"),
        (
            "values = np.where(np.isfinite(values), -values if lower else values, np.nan)",
            "values = np.where(np.isfinite(values), values, np.nan)",
            "the direction of a measure",
        ),
        (
            "lowest = np.nanmin(scaled) - 1 if",
            "lowest = np.nanmax(scaled) + 1 if",
            "no number stands last",
        ),
    ),
    *_of(
        "evidence/of_methods",
        (
            "recall = float((top & cue).sum() / cue.sum())",
            "recall = float((top & cue).sum() / top.sum())",
            "recall is a share of the cue",
        ),
        (
            "more = (heat - other).clamp(min=0).double()",
            "more = heat.double()",
            "what the twin's map lacks",
        ),
    ),
    *_of(
        "evidence/tier_a_constructed",
        (
            "rule.bias[0] = -1.0",
            "rule.bias[0] = -0.4",
            "roof alone is not enough for `both`",
        ),
        (
            "first.weight[band, band] = 1 / 0.35",
            "first.weight[band, band - 1] = 1 / 0.35",
            "every band has its own channel",
        ),
    ),
    *_of(
        "analysis/basis",
        (
            "return Cells(shown.keys, shown.matrix - values[:, order], samples), higher",
            "return Cells(shown.keys, shown.matrix + values[:, order], samples), higher",
            "the contrast is M2 less M1",
        ),
        (
            "shown.matrix - values[:, order]",
            "shown.matrix - values[:, list(range(len(order)))]",
            "the contrast takes M1 of the same cut",
        ),
        (
            'return JOINED if kept.any() else "iou_drop"',
            'return "iou_drop"',
            "strict goes by the contrast",
        ),
    ),
    *_of(
        "analysis/names",
        (
            'headline(preset)[measure].better == "higher"',
            'headline(preset)[measure].better != "neither"',
            "M1 is better when lower",
        ),
        (
            'REMOVING = ("M1", "iou_drop", JOINED)',
            'REMOVING = ("M1", "iou_drop")',
            "under a fill that is not valid the contrast measures outlines too",
        ),
    ),
    *_of(
        "study/early_stop",
        (
            "bet = np.maximum(self._sum, 0) / np.where",
            "bet = self._sum / np.where",
            "who was worse so far gets no bet",
        ),
        (
            "self._seen / (self._seen + 1)",
            "self._seen / (self._seen + 2)",
            "m tiles of m + 1",
        ),
        (
            "self.log_e += np.log(2) - np.logaddexp(0, -2 * bet * y)",
            "self.log_e += np.log(2) - np.logaddexp(0, -bet * y)",
            "1 + tanh(z) is 2 / (1 + exp(-2z))",
        ),
        (
            "self._sum += y\n        self._squares += y**2",
            "self._sum += y\n        self._squares += abs(y)",
            "the bet is a mean over a mean square",
        ),
        ("        self._seen += there", "        self._seen += 1", "missing tiles are no tiles"),
        (
            "self.shown |= self.log_e >= self.needed",
            "self.shown = self.log_e >= self.needed",
            "what was shown stays shown",
        ),
        (
            "np.round(x[self.first] - x[self.second], 12)",
            "(x[self.first] - x[self.second])",
            "noise of rounding is no difference",
        ),
        (
            "self.race = Race(first, second, margin, candidates / ALPHA)",
            "self.race = Race(first, second, margin, 1 / ALPHA)",
            "each candidate may be named wrongly",
        ),
        (
            "            2 * self.size / ALPHA,",
            "            self.size / ALPHA,",
            "each pair has two claims",
        ),
        (
            "settled = race.shown[half] | race.shown[self.size :]",
            "settled = race.shown[half] & race.shown[self.size :]",
            "one claim settles a pair",
        ),
        ("sign * values", "values", "lower is better for some measures"),
        (
            "                return\n            rows_of_tile =",
            "                self.seen += 1\n                continue\n            rows_of_tile =",
            "only complete beginnings count",
        ),
    ),
]


def preload() -> None:
    """Import once what the tests need beside the package: a fork then starts in no time."""
    for name in (
        "segproof",
        "segproof.testing.methods",
        "hypothesis.extra.numpy",
        "sklearn.metrics",
    ):
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.split(".")[0] == "segproof"]:
        del sys.modules[name]


def attempt(mutant: Mutant, folder: Path) -> NoReturn:
    """In a process of its own: the tests of the module, on a copy of the package with the fault."""
    code = BROKEN
    try:
        copy = folder / "src"
        # the demo's weights are large and no mutant's test reads them
        left_out = shutil.ignore_patterns("__pycache__", "model.safetensors")
        shutil.copytree(SOURCE, copy, ignore=left_out)
        path = copy / "segproof" / f"{mutant.file}.py"
        path.write_text(mutant.apply(path.read_text(encoding="utf-8")), encoding="utf-8")
        with (folder / "said").open("w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        sys.path.insert(0, str(copy))
        sys.dont_write_bytecode = True
        # plain: what is imported already cannot have its asserts rewritten
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--assert=plain"]
        tests = [str(ROOT / "tests" / f"{name}.py") for name in TESTS[mutant.file]]
        found = int(pytest.main([f"--rootdir={ROOT}", *options, *tests]))
        used = str(
            getattr(sys.modules.get(f"segproof.{mutant.file.replace('/', '.')}"), "__file__", "")
        )
        code = found if used == str(path) else BROKEN
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def outcome_of(code: int) -> Outcome:
    """What an exit code says: 0 all passed, 1 a test failed; anything else shows nothing."""
    return {0: "survived", 1: "killed", -signal.SIGKILL: "timed out"}.get(code, "broken")  # type: ignore[return-value]


def run_all(mutants: list[Mutant], jobs: int, folder: Path) -> Iterator[tuple[int, Outcome, str]]:
    """The place of each mutant in the list, what came of it, and what the tests said."""
    waiting = deque(enumerate(mutants))
    running: dict[int, tuple[int, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            place, mutant = waiting.popleft()
            own = folder / str(place)
            own.mkdir()
            child = os.fork()
            if not child:
                attempt(mutant, own)
            running[child] = (place, time.monotonic())
        for child, (_, since) in running.items():
            if time.monotonic() - since > LIMIT:
                os.kill(child, signal.SIGKILL)
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            time.sleep(0.05)
            continue
        place, _ = running.pop(child)
        said = (folder / str(place) / "said").read_text(encoding="utf-8", errors="replace")
        shutil.rmtree(folder / str(place))
        yield (
            place,
            outcome_of(os.waitstatus_to_exitcode(status)),
            "\n".join(said.splitlines()[-8:]),
        )


def chosen(only: str | None) -> list[Mutant]:
    """The mutants whose number, module or text holds `only`; all without it."""
    if only is None:
        return MUTANTS
    if only.isdecimal():
        return [MUTANTS[int(only)]]
    if only in TESTS:
        return [m for m in MUTANTS if m.file == only]
    return [m for m in MUTANTS if only in m.old + m.new + m.why]


def main(arguments: list[str] | None = None) -> int:
    """Run them and print a line each, then the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="a number, a module, or part of a mutant's text")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    given = parser.parse_args(arguments)
    mutants, start = chosen(given.only), time.monotonic()
    for mutant in mutants:  # stale ones stop everything, before minutes are spent
        mutant.apply((SOURCE / "segproof" / f"{mutant.file}.py").read_text(encoding="utf-8"))
    sys.path[:0] = [str(SOURCE)]
    preload()
    sys.path.remove(str(SOURCE))
    counts: Counter[Outcome] = Counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for place, outcome, said in run_all(mutants, given.jobs, Path(folder)):
            mutant = mutants[place]
            counts[outcome] += 1
            print(f"{outcome:10}{MUTANTS.index(mutant):4} {mutant.file}: {mutant.why}", flush=True)
            if outcome != "killed":
                print(f"  {mutant.old}\n  {mutant.new}\n{said}", flush=True)
    others = "".join(f"; {n} {outcome}" for outcome, n in counts.items() if outcome != "killed")
    seconds = time.monotonic() - start
    print(f"{counts['killed']} of {len(mutants)} killed{others} ({seconds:.0f} s)")
    return int(counts["killed"] != len(mutants))


if __name__ == "__main__":
    sys.exit(main())
