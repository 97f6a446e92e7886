"""Lists the commands: where each is, its group, its help text, an example; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cyclopts import Group

__all__ = ["COMMANDS", "OPTIONS", "OWN", "Command"]

LOOK: Final = Group("Look at a model", sort_key=1)
EXPLAIN: Final = Group("Explain", sort_key=2)
STUDY: Final = Group("Study", sort_key=3)
CHECK: Final = Group("Check", sort_key=4)
OWN: Final = Group("Options of this command", sort_key=5)  # those that are no settings
OPTIONS: Final = Group("Options of every command", sort_key=99)


@dataclass(frozen=True)
class Command:
    """A command: `function` is "module:name", `help` what `--help` prints, `example` a command
    line, `loads` what the first message says is loaded where the words name no network.
    """

    function: str
    group: Group
    help: str
    example: str
    loads: str = ""


COMMANDS: Final = {
    "doctor": Command(
        "segproof.cli.networks:doctor",
        LOOK,
        "Check whether a network is understood, and say which options it needs.\n\n"
        "One picture runs through every step: the output, the classes, the layers and the"
        " gradients. Exit codes: 0 ready to explain, 4 something does not work, 2 the network"
        " cannot be loaded.",
        "segproof doctor --model NETWORK --image TILE.png",
    ),
    "layers": Command(
        "segproof.cli.networks:layers",
        LOOK,
        "List the layers that are worth explaining.\n\n"
        "The table gives the alias, the module path, the stride, the channels and the size of the"
        " map. On one picture it also gives the share of channels that are zero everywhere, and"
        " the receptive field: the side of the square that holds 95 % of what a cell in the"
        " middle depends on.",
        "segproof layers --model NETWORK --image TILE.png",
    ),
    "train": Command(
        "segproof.cli.networks:train",
        LOOK,
        "Train a small network on tiles with masks.\n\n"
        "A fifth of the tiles is held out, and the network is scored on it.",
        "segproof train --data TILES --out NETWORK --steps 1000",
    ),
    "explain": Command(
        "segproof.cli.explain:explain",
        EXPLAIN,
        "Explain pictures: write a heatmap for each.\n\n"
        "The folder holds STEM.npy (the heatmap, 0 to 1, float32), STEM.png (the picture with the"
        " heatmap) and explanations.json. With several methods or layers, the name of a file says"
        " which.",
        "segproof explain TILE.png --model NETWORK --class building --methods grad_cam"
        " --layers decoder:-1 --out explained",
    ),
    "recommend": Command(
        "segproof.cli.study:recommend",
        EXPLAIN,
        "Recommend a method and a layer for a network and its data.\n\n"
        "A short strict study compares quick methods at matched area on the last encoder stage and"
        " on every decoder block. It prints one sentence, a ranking, and the command of the same"
        " study.",
        "segproof recommend --model NETWORK --data TILES --class building --out quick",
    ),
    "demo": Command(
        "segproof.cli.study:demo",
        STUDY,
        "Run a whole study without any file of yours.\n\n"
        "The demo generates tiles, loads the network that ships with segproof, and writes a"
        " report.",
        "segproof demo --out demo",
        loads="the network of the demo",
    ),
    "init": Command(
        "segproof.cli.study_file:init",
        STUDY,
        "Write a study file for a network and a folder of tiles.\n\n"
        "The file holds every setting with its default and what it means. The network is loaded"
        " and the folder is read, so that the class and the layers are those of the network. Run"
        " the file with `segproof study`.",
        "segproof init NETWORK TILES --out study.toml",
    ),
    "study": Command(
        "segproof.cli.study:study",
        STUDY,
        "Put explanations on trial and write a report.\n\n"
        "Settings come from options, from a study file in TOML, or from both; options win. The"
        " study prints its tables and writes results.parquet, results.csv, manifest.json and"
        " report.html. Exit codes: 0 done, 2 wrong input, 4 some tiles failed, 5 the disk is full"
        " or not writable, 130 stopped.",
        "segproof study --model NETWORK --data TILES --class building --out run",
    ),
    "fills": Command(
        "segproof.cli.study:fills",
        STUDY,
        "Find the fills that do not mislead a network.\n\n"
        "The target itself is removed with every fill and outline. The table shows the relative"
        " drop of confidence, mean (lowest) over the tiles, and marks the fills that a strict study"
        " takes. A fill is valid where the mean drop is at least 0.5.",
        "segproof fills --model NETWORK --data TILES --class building",
    ),
    "report": Command(
        "segproof.cli.runs:report",
        STUDY,
        "Write report.html of a run again and print its tables.",
        "segproof report run",
    ),
    "compare": Command(
        "segproof.cli.runs:compare",
        STUDY,
        "Compare two runs: two networks, or two versions of one.\n\n"
        "Run B is compared with run A on the tiles that both studied. Exit codes: 0 nothing that"
        " counts got worse, 3 something got worse, 2 the runs cannot be compared.",
        "segproof compare run_a run_b",
    ),
    "check": Command(
        "segproof.cli.runs:check",
        CHECK,
        "Read every tile and say what cannot be studied.\n\n"
        "Every image and mask is read: how they pair, what the values of the masks mean, and which"
        " files are damaged. A network is not run: its classes, bands and size are compared. Exit"
        " codes: 0 all tiles are good, 4 some are bad,"
        " 2 there is no such folder.",
        "segproof check TILES --model NETWORK",
    ),
    "status": Command(
        "segproof.cli.status:status",
        CHECK,
        "Show the progress of a run, also while it runs.\n\n"
        "It prints the tiles that are done, the rate, the time left, the failures by reason, and"
        " the command that continues the run.",
        "segproof status run",
    ),
    "verify": Command(
        "segproof.cli.runs:verify",
        CHECK,
        "Check a finished run: the database, the table and some tiles.\n\n"
        "It checks the integrity of the database, the checksum of every tile and the exported"
        " table, and recomputes a few tiles. Exit codes: 0 nothing is wrong, 4 something is wrong,"
        " 2 there is no run, or the network is another one.",
        "segproof verify run --limit 3",
        loads="the network of the run",
    ),
    "measures": Command(
        "segproof.cli.measures:measures",
        CHECK,
        "List the measures, or describe one in full.\n\n"
        "The description says what the measure means, which values it takes, which ones are"
        " better, and when it misleads. Measures of whole heatmaps are added to a study with"
        " `segproof study --measures`.",
        "segproof measures contrast",
    ),
    "evidence": Command(
        "segproof.cli.evidence:evidence",
        CHECK,
        "Test measures and methods where the right answer is known.\n\n"
        "The networks and pictures are made so that the truth is known. The tables say which"
        " measures order maps of known quality rightly, and which methods find a cue that the"
        " network needs. The folder holds measures.csv, methods.csv, cards.json and figures.",
        "segproof evidence --tier a --scenes 4 --out evidence",
        loads="the networks of the evidence",
    ),
}
