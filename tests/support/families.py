"""Builds small networks of many families with random weights, the real ones and stand-ins."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import Tensor, nn

CLASSES = ("ground", "roof", "road")
STAGES = ["stage1", "stage2", "stage3", "stage4"]


@dataclass(frozen=True)
class Family:
    """How to build one network, the sizes (H, W) it takes, and where its encoder and decoder end.

    `encoder` and `decoder` are the paths of `encoder:-1` and `decoder:-1`, empty where no list of
    layers was agreed on. `sizes` holds one square and one other size; only the square one where the
    network takes no other. `fixed`: it takes the first size alone. `output` is what the contract
    needs to find the logits, `more` the further inputs that its forward needs.
    """

    make: Callable[[], nn.Module]
    encoder: str = ""
    decoder: str = ""
    size: tuple[int, int] = (64, 96)
    square: tuple[int, int] = (64, 64)
    fixed: bool = False
    output: Any = None
    more: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The sizes to try it on, the square one first."""
        return tuple(dict.fromkeys((self.square, self.size)))


def family(make: Callable[[], nn.Module], encoder: str = "", decoder: str = "", **how: Any) -> Any:
    return Family(make, encoder, decoder, **how)


# --- torchvision and segmentation_models_pytorch --------------------------------------------------
def tv(name: str) -> nn.Module:
    net: nn.Module = getattr(torchvision.models.segmentation, name)(
        weights=None, weights_backbone=None, num_classes=3
    )
    return net


def of_smp(decoder: str, encoder: str = "resnet18", **options: Any) -> nn.Module:
    net: nn.Module = getattr(smp, decoder)(encoder, encoder_weights=None, classes=3, **options)
    return net


# --- transformers ---------------------------------------------------------------------------------
HF_CLASSES = {
    "Segformer": "SegformerForSemanticSegmentation",
    "UperNet": "UperNetForSemanticSegmentation",
    "UperNet-convnext": "UperNetForSemanticSegmentation",
    "UperNet-resnet": "UperNetForSemanticSegmentation",
    "UperNet-dinov2": "UperNetForSemanticSegmentation",
    "Beit": "BeitForSemanticSegmentation",
    "Data2VecVision": "Data2VecVisionForSemanticSegmentation",
    "DPT": "DPTForSemanticSegmentation",
    "MobileNetV2": "MobileNetV2ForSemanticSegmentation",
    "MobileViT": "MobileViTForSemanticSegmentation",
    "MobileViTV2": "MobileViTV2ForSemanticSegmentation",
    "Sapiens2": "Sapiens2ForSemanticSegmentation",
    "Tipsv2Dpt": "Tipsv2DptForSemanticSegmentation",
    "Mask2Former": "Mask2FormerForUniversalSegmentation",
    "Mask2Former-resnet": "Mask2FormerForUniversalSegmentation",
    "MaskFormer": "MaskFormerForInstanceSegmentation",
    "MaskFormer-resnet": "MaskFormerForInstanceSegmentation",
    "Eomt": "EomtForUniversalSegmentation",
    "EomtDinov3": "EomtDinov3ForUniversalSegmentation",
    "OneFormer": "OneFormerForUniversalSegmentation",
}
LABELS: dict[str, Any] = {
    "id2label": dict(enumerate(CLASSES)),
    "label2id": {name: place for place, name in enumerate(CLASSES)},
}
VIT: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32,
    "patch_size": 16, "image_size": 64,
}  # fmt: skip
EOMT = {**VIT, "hidden_size": 32, "num_blocks": 2, "num_queries": 5}


def hf_backbone(name: str) -> Any:
    """The configuration of a backbone with maps of strides 4, 8, 16 and 32 (dinov2: 14 each)."""
    hf: Any = importlib.import_module("transformers")
    sizes = {"hidden_sizes": [8, 12, 16, 24], "depths": [1] * 4, "out_features": STAGES}
    if name == "convnext":
        return hf.ConvNextConfig(**sizes)
    if name == "resnet":
        return hf.ResNetConfig(embedding_size=8, layer_type="basic", **sizes)
    if name == "dinov2":
        own = {"patch_size": 14, "image_size": 56, "out_features": STAGES}
        return hf.Dinov2Config(reshape_hidden_states=True, **{**VIT, **own})
    return hf.SwinConfig(
        embed_dim=12, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4, out_features=STAGES
    )


def hf_config(name: str) -> Any:
    hf: Any = importlib.import_module("transformers")

    name, _, backbone = name.partition("-")
    neck = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}
    pools = {"auxiliary_channels": 8, "pool_scales": [1, 2]}
    rates = {"aspp_out_channels": 16, "atrous_rates": [1, 2, 3], "image_size": 64}
    if name == "Segformer":
        return hf.SegformerConfig(
            hidden_sizes=[8, 16, 24, 32],
            depths=[1] * 4,
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
            **LABELS,
        )
    if name == "UperNet":
        wide = {"": 48, "dinov2": 24}.get(backbone, 16)
        return hf.UperNetConfig(
            backbone_config=hf_backbone(backbone), hidden_size=16, auxiliary_channels=8,
            auxiliary_in_channels=wide, **LABELS,
        )  # fmt: skip
    if name == "Beit":
        return hf.BeitConfig(
            out_indices=[1, 2, 3, 4], use_relative_position_bias=True, **VIT, **pools, **LABELS
        )
    if name == "Data2VecVision":
        return hf.Data2VecVisionConfig(out_indices=[0, 1, 2, 3], **VIT, **pools, **LABELS)
    if name == "DPT":
        return hf.DPTConfig(backbone_out_indices=[0, 1, 2, 3], **VIT, **neck, **LABELS)
    if name == "Tipsv2Dpt":
        vision = hf.AutoConfig.for_model(
            "tipsv2_vision_model", out_indices=[1, 2, 3, 4], apply_layernorm=True,
            reshape_hidden_states=False, **{**VIT, "patch_size": 14, "image_size": 56},
        )  # fmt: skip
        return hf.Tipsv2DptConfig(backbone_config=vision, **neck, **LABELS)
    if name == "MobileNetV2":
        return hf.MobileNetV2Config(depth_multiplier=0.35, output_stride=16, **LABELS)
    if name == "MobileViT":
        return hf.MobileViTConfig(
            hidden_sizes=[24, 32, 40], neck_hidden_sizes=[8, 8, 12, 16, 20, 24, 32],
            num_attention_heads=2, output_stride=16, **rates, **LABELS,
        )  # fmt: skip
    if name == "MobileViTV2":
        return hf.MobileViTV2Config(width_multiplier=0.25, n_attn_blocks=[1] * 3, **rates, **LABELS)
    if name == "Sapiens2":
        head = {"upsample_out_channels": [16, 8], "conv_out_channels": [8]}
        return hf.Sapiens2Config(
            head_config=head, num_key_value_attention_heads=2, **{**VIT, "hidden_size": 32},
            **LABELS,
        )  # fmt: skip
    if name == "Eomt":
        return hf.EomtConfig(mlp_ratio=2, **EOMT, **LABELS)
    if name == "EomtDinov3":
        return hf.EomtDinov3Config(**EOMT, **LABELS)
    small = {"mask_feature_size": 32, **(LABELS if backbone else {"num_labels": 3})}
    if name == "Mask2Former":
        return hf.Mask2FormerConfig(
            backbone_config=hf_backbone(backbone), feature_size=32, hidden_dim=32,
            encoder_feedforward_dim=16, dim_feedforward=16, decoder_layers=2, encoder_layers=1,
            num_attention_heads=2, num_queries=5, **small,
        )  # fmt: skip
    if name == "OneFormer":
        return hf.OneFormerConfig(
            backbone_config=hf_backbone(backbone), num_queries=5, hidden_dim=32, conv_dim=32,
            mask_dim=32, encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1,
            decoder_layers=2, num_attention_heads=2, text_encoder_width=16,
            text_encoder_num_layers=1, **LABELS,
        )  # fmt: skip
    detr = hf.DetrConfig(
        d_model=16, decoder_layers=1, encoder_layers=1, decoder_ffn_dim=16, encoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5,
    )  # fmt: skip
    return hf.MaskFormerConfig(
        backbone_config=hf_backbone(backbone), fpn_feature_size=32, decoder_config=detr, **small
    )


def of_hf(name: str) -> nn.Module:
    hf: Any = importlib.import_module("transformers")

    hf.logging.set_verbosity_error()
    net: nn.Module = getattr(hf, HF_CLASSES[name])(hf_config(name))
    return net


# --- stand-ins: module names, nesting and results of packages that are not installed here ---------
def conv(inside: int, outside: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.InstanceNorm2d(outside),
                         nn.PReLU())  # fmt: skip


def up(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(inside, outside, 2, 2), nn.InstanceNorm2d(outside),
                         nn.PReLU())  # fmt: skip


class SkipConnection(nn.Module):
    """Concatenates its input and what `submodule` makes of it, as MONAI's U-Net does."""

    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.submodule(x)], dim=1)


class MonaiUnet(nn.Module):
    """MONAI's UNet in 2D: `model.0`, `model.1.submodule.0`, ... one level inside the other."""

    def __init__(self, channels: Sequence[int] = (4, 6, 8, 10), classes: int = 3) -> None:
        super().__init__()

        def level(inside: int, outside: int, depth: int) -> nn.Module:
            here = channels[depth]
            if depth == len(channels) - 2:
                inner, joined = conv(here, channels[-1]), here + channels[-1]
            else:
                inner, joined = level(here, here, depth + 1), 2 * here
            last = nn.ConvTranspose2d(joined, outside, 2, 2) if depth == 0 else up(joined, outside)
            return nn.Sequential(conv(inside, here, stride=2), SkipConnection(inner), last)

        self.model = level(3, classes, 0)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x)
        return result


class UpCat(nn.Module):
    def __init__(self, inside: int, beside: int, outside: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(inside, inside // 2, 2, 2)
        self.convs = conv(inside // 2 + beside, outside)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        result: Tensor = self.convs(torch.cat([beside, self.upsample(x)], dim=1))
        return result


class MonaiBasicUnet(nn.Module):
    """MONAI's BasicUNet in 2D: `conv_0`, `down_1`, ..., `upcat_1`, `final_conv`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_0 = conv(3, 4)
        self.down_1 = nn.Sequential(nn.MaxPool2d(2), conv(4, 8))
        self.down_2 = nn.Sequential(nn.MaxPool2d(2), conv(8, 12))
        self.down_3 = nn.Sequential(nn.MaxPool2d(2), conv(12, 16))
        self.upcat_3 = UpCat(16, 12, 12)
        self.upcat_2 = UpCat(12, 8, 8)
        self.upcat_1 = UpCat(8, 4, 6)
        self.final_conv = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv_0(x)
        b = self.down_1(a)
        c = self.down_2(b)
        d = self.down_3(c)
        result: Tensor = self.final_conv(self.upcat_1(self.upcat_2(self.upcat_3(d, c), b), a))
        return result


class Stem(nn.Module):
    """Three stages of strides 2, 4 and 8, all of which it returns."""

    def __init__(self, widths: Sequence[int] = (6, 8, 12)) -> None:
        super().__init__()
        self.layer1 = conv(3, widths[0], 2)
        self.layer2 = conv(widths[0], widths[1], 2)
        self.layer3 = conv(widths[1], widths[2], 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a = self.layer1(x)
        b = self.layer2(a)
        return a, b, self.layer3(b)


class FcnHead(nn.Module):
    def __init__(self, inside: int, index: int) -> None:
        super().__init__()
        self.index = index
        self.convs = nn.Sequential(conv(inside, 8))
        self.conv_seg = nn.Conv2d(8, 3, 1)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        result: Tensor = self.conv_seg(self.convs(stages[self.index]))
        return result


class PixelData:
    """MMEngine's PixelData: a tensor in `data`, without a batch axis."""

    def __init__(self, data: Tensor) -> None:
        self.data = data


class SegDataSample:
    """What MMSegmentation returns for one picture in mode "predict"."""

    def __init__(self, logits: Tensor) -> None:
        self.seg_logits = PixelData(logits)
        self.pred_sem_seg = PixelData(logits.argmax(dim=0, keepdim=True))


class MmSegmentor(nn.Module):
    """MMSegmentation's EncoderDecoder: `backbone`, `decode_head`, `auxiliary_head`."""

    def __init__(self, mode: str = "tensor") -> None:
        super().__init__()
        self.mode = mode
        self.backbone = Stem()
        self.decode_head = FcnHead(12, 2)
        self.auxiliary_head = FcnHead(8, 1)  # in training only

    def forward(self, x: Tensor) -> Any:
        logits = self.decode_head(self.backbone(x))
        if self.mode == "tensor":
            return logits
        logits = nn.functional.interpolate(logits, size=x.shape[-2:], mode="bilinear")
        return [SegDataSample(one) for one in logits]


def mm_logits(returned: Any) -> Tensor:
    """The logits [N, K, H, W] in MMSegmentation's list of samples."""
    return torch.stack([sample.seg_logits.data for sample in returned])


class ModelOutput:
    """TerraTorch's result: a plain object, neither a dataclass nor a mapping."""

    def __init__(self, output: Tensor, auxiliary_heads: Any = None) -> None:
        self.output = output
        self.auxiliary_heads = auxiliary_heads


class TerraTorch(nn.Module):
    """TerraTorch's PixelWiseModel: `encoder`, `decoder`, `head`, `aux_heads`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Stem()
        self.decoder = nn.Sequential(up(12, 8), up(8, 6))
        self.head = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 3, 1))
        self.aux_heads = nn.ModuleDict({"aux": nn.Conv2d(8, 3, 1)})

    def forward(self, x: Tensor) -> ModelOutput:
        stages = self.encoder(x)
        return ModelOutput(
            nn.functional.interpolate(self.head(self.decoder(stages[-1])), size=x.shape[-2:]),
            {"aux": self.aux_heads["aux"](stages[1])},
        )


class NnUnetEncoder(nn.Module):
    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = zip((3, *widths), widths, strict=False)
        self.stages = nn.ModuleList(
            nn.Sequential(conv(a, b, 1 if n == 0 else 2), conv(b, b))
            for n, (a, b) in enumerate(pairs)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class NnUnetDecoder(nn.Module):
    """nnU-Net's decoder: its module list of heads runs for every size under deep supervision."""

    def __init__(self, widths: Sequence[int], deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        below = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.transpconvs = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in below)
        self.stages = nn.ModuleList(conv(2 * b, b) for _, b in below)
        self.seg_layers = nn.ModuleList(nn.Conv2d(b, 3, 1) for _, b in below)

    def forward(self, skips: Sequence[Tensor]) -> Any:
        x, found = skips[-1], []
        for n, skip in enumerate(skips[-2::-1]):
            x = self.stages[n](torch.cat([self.transpconvs[n](x), skip], dim=1))
            found.append(self.seg_layers[n](x))
        return found[::-1] if self.deep_supervision else found[-1]


class NnUnet(nn.Module):
    """nnU-Net's PlainConvUNet in 2D: the finest output first where supervision is deep."""

    def __init__(self, deep_supervision: bool = True) -> None:
        super().__init__()
        self.encoder = NnUnetEncoder((4, 6, 8, 10))
        self.decoder = NnUnetDecoder((4, 6, 8, 10), deep_supervision)

    def forward(self, x: Tensor) -> Any:
        return self.decoder(self.encoder(x))


class LightningTask(nn.Module):
    """A LightningModule as its user writes it: the network in `model`, losses beside it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


DINO: dict[str, Any] = {"size": (56, 84), "square": (56, 56)}
FIXED: dict[str, Any] = {"size": (64, 64), "fixed": True}

FAMILIES: dict[str, Any] = {
    "smp-Unet": family(lambda: of_smp("Unet"), "encoder.layer4", "decoder.blocks.4"),
    "smp-UnetPlusPlus": family(
        lambda: of_smp("UnetPlusPlus"), "encoder.layer4", "decoder.blocks.x_0_4"
    ),
    "smp-MAnet": family(lambda: of_smp("MAnet"), "encoder.layer4", "decoder.blocks.4"),
    "smp-Linknet": family(lambda: of_smp("Linknet"), "encoder.layer4", "decoder.blocks.4"),
    "smp-FPN": family(lambda: of_smp("FPN"), "encoder.layer4", "decoder.merge"),
    "smp-PSPNet": family(lambda: of_smp("PSPNet"), "encoder.layer2", "decoder.conv"),
    "smp-PAN": family(
        lambda: of_smp("PAN"), "encoder.layer4", "decoder.gau1", size=(128, 192), square=(128, 128)
    ),
    "smp-DeepLabV3": family(lambda: of_smp("DeepLabV3"), "encoder.layer4", "decoder.relu"),
    "smp-DeepLabV3Plus": family(
        lambda: of_smp("DeepLabV3Plus"), "encoder.layer4", "decoder.block2"
    ),
    "smp-UPerNet": family(lambda: of_smp("UPerNet"), "encoder.layer4", "decoder.fusion_block"),
    "smp-Segformer": family(lambda: of_smp("Segformer"), "encoder.layer4", "decoder.mlp_stage.4"),
    "smp-DPT-vit": family(
        lambda: of_smp("DPT", "tu-vit_tiny_patch16_224", dynamic_img_size=True),
        "encoder.model.blocks.11",
        "decoder.fusion_blocks.3",
    ),
    "smp-Unet-mit": family(lambda: of_smp("Unet", "mit_b0"), "encoder.norm4", "decoder.blocks.4"),
    "smp-Segformer-mit": family(
        lambda: of_smp("Segformer", "mit_b0"), "encoder.norm4", "decoder.fuse_stage"
    ),
    "smp-FPN-pvt": family(
        lambda: of_smp("FPN", "tu-pvt_v2_b0"), "encoder.model.stages_3", "decoder.merge"
    ),
    "smp-UPerNet-swin": family(
        lambda: of_smp("UPerNet", "tu-swin_tiny_patch4_window7_224", img_size=(64, 96)),
        "encoder.model.layers_3",
        "decoder.fusion_block",
        square=(64, 96),
        fixed=True,
    ),
    "deeplabv3_resnet50": family(
        lambda: tv("deeplabv3_resnet50"), "backbone.layer4", "classifier.3"
    ),
    "deeplabv3_mobilenet_v3_large": family(
        lambda: tv("deeplabv3_mobilenet_v3_large"), "backbone.16", "classifier.3"
    ),
    "fcn_resnet50": family(lambda: tv("fcn_resnet50"), "backbone.layer4", "classifier.2"),
    "lraspp_mobilenet_v3_large": family(
        lambda: tv("lraspp_mobilenet_v3_large"), "backbone.16", "classifier.cbr"
    ),
    "hf-Segformer": family(
        lambda: of_hf("Segformer"), "segformer.stages.3", "decode_head.activation", size=(100, 75)
    ),
    "hf-UperNet": family(
        lambda: of_hf("UperNet"),
        "backbone.hidden_states_norms.stage4",
        "decode_head.fpn_bottleneck",
    ),
    "hf-Mask2Former": family(
        lambda: of_hf("Mask2Former"),
        "model.pixel_level_module.encoder.hidden_states_norms.stage4",
        "model.pixel_level_module.decoder.mask_projection",
    ),
    "hf-MaskFormer": family(
        lambda: of_hf("MaskFormer"),
        "model.pixel_level_module.encoder.hidden_states_norms.3",
        "model.pixel_level_module.decoder.mask_projection",
    ),
    "hf-UperNet-convnext": family(lambda: of_hf("UperNet-convnext")),
    "hf-UperNet-resnet": family(lambda: of_hf("UperNet-resnet"), size=(100, 75)),
    "hf-UperNet-dinov2": family(lambda: of_hf("UperNet-dinov2"), **DINO),
    "hf-Beit": family(lambda: of_hf("Beit")),
    "hf-Data2VecVision": family(lambda: of_hf("Data2VecVision"), **FIXED),
    "hf-DPT": family(lambda: of_hf("DPT"), **FIXED),
    "hf-MobileNetV2": family(lambda: of_hf("MobileNetV2")),
    "hf-MobileViT": family(lambda: of_hf("MobileViT")),
    "hf-MobileViTV2": family(lambda: of_hf("MobileViTV2")),
    "hf-Sapiens2": family(lambda: of_hf("Sapiens2")),
    "hf-Tipsv2Dpt": family(lambda: of_hf("Tipsv2Dpt"), **DINO),
    "hf-Mask2Former-resnet": family(lambda: of_hf("Mask2Former-resnet")),
    "hf-MaskFormer-resnet": family(lambda: of_hf("MaskFormer-resnet")),
    "hf-Eomt": family(lambda: of_hf("Eomt"), **FIXED),
    "hf-EomtDinov3": family(lambda: of_hf("EomtDinov3"), **FIXED),
    "monai-UNet": family(MonaiUnet),
    "monai-BasicUNet": family(MonaiBasicUnet),
    "mmseg-tensor": family(MmSegmentor),
    "mmseg-predict": family(lambda: MmSegmentor("predict"), output=mm_logits),
    "terratorch": family(TerraTorch, output=lambda result: result.output),
    "nnunet": family(lambda: NnUnet(deep_supervision=False)),
    "nnunet-deep": family(NnUnet, output=lambda result: result[0]),
    "lightning-Unet": family(lambda: LightningTask(of_smp("Unet"))),
}

# networks that need a second input: the task of OneFormer, as token ids
TWO_INPUTS: dict[str, Any] = {
    "hf-OneFormer": family(
        lambda: of_hf("OneFormer"), more={"task_inputs": lambda: torch.ones(1, 77)}
    ),
}
