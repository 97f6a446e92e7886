"""Renew the tables of "The networks" in evidence.md.

python docs/_make/known_truth_networks.py [TRAIN TEST]

Without folders the first table alone: interventions on the shipped networks. TRAIN and TEST are
folders of tiles with roofs, such as whu/train and whu/test; four networks are trained on them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from page import renew

from segproof import FolderDataset
from segproof.evidence.tier_b_planted import NETWORKS, accept, planted_model
from segproof.evidence.tier_c_marker import reliance, table

PAGE = Path(__file__).resolve().parents[1] / "evidence" / "known-truth.md"


def interventions() -> str:
    lines = [
        "| network | IoU | cue removed | inserted | roof removed | others | worst | parameters |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        model = planted_model(name)
        made = accept(model, name.split("-")[0], twin=name.endswith("-twin"))
        size = sum(weights.numel() for weights in model.parameters())
        lines.append(
            f"| {name} | {made.iou:.3f} | {-made.cue_removed:+.3f} | {made.cue_inserted:+.3f} |"
            f" {-made.roof_removed:+.3f} | {made.others:.4f} | {made.worst:.3f} | {size:,} |"
        )
    return "\n".join(lines)


def main(folders: list[str]) -> None:
    made = {"interventions": interventions()}
    if folders:
        train, test = (FolderDataset(folder) for folder in folders)
        made["reliance"] = table(reliance(train, test))
    renew(PAGE, made)


if __name__ == "__main__":
    main(sys.argv[1:])
