"""Options of `tether split`: one annotation each, so that the command reads as a list of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AvoidOption",
    "ByIdOption",
    "DescriptorsOption",
    "FileOption",
    "HoldOutOption",
    "IdFractionOption",
    "MethodOption",
    "NClustersOption",
    "NNeighboursOption",
    "NameOption",
    "NearOption",
    "NestedValidationOption",
    "OodOption",
    "OutOption",
    "PretrainingOption",
    "SeedOption",
    "SetsOption",
    "SideOption",
    "TargetOption",
    "TrainSizeOption",
    "ValFractionOption",
    "ValSizeOption",
    "VariantOption",
]

OutOption = Annotated[Path, typer.Option(help="File to write.")]
MethodOption = Annotated[
    str,
    typer.Option(
        help="Named sets: random, file, sources. By property: boom, tail, sparse-y. By "
        "descriptors: cluster, sparse-x. By labels: element, group, period, chemical-system, "
        "space-group, scaffold, folds. Or size."
    ),
]
TargetOption = Annotated[
    str | None, typer.Option(help="Label to split by; default: the only one of the store.")
]
OodOption = Annotated[
    float | None, typer.Option(help="OOD structures: a share below 1, or a number.")
]
HoldOutOption = Annotated[
    list[str] | None,
    typer.Option(help="Element, group, space group, …, cluster or fold to test on; repeatable."),
]
DescriptorsOption = Annotated[
    str | None,
    typer.Option(
        help="composition, structure, both, or an npy file with a row a structure: for cluster "
        "and sparse, and for near-duplicates with any method."
    ),
]
NClustersOption = Annotated[
    int | None, typer.Option(help="Clusters (cluster) or folds (sparse); 50.")
]
VariantOption = Annotated[
    str | None,
    typer.Option(help="Sparse: all, single (one a cluster) or cluster (with neighbours)."),
]
NNeighboursOption = Annotated[
    int | None, typer.Option(help="Neighbours in a fold (sparse, variant cluster); 10.")
]
SideOption = Annotated[str | None, typer.Option(help="Tail: both, low or high.")]
IdFractionOption = Annotated[
    float | None, typer.Option(help="Share of what is not OOD for the ID test; 0.05.")
]
ValSizeOption = Annotated[int | None, typer.Option(help="Structures of train to validate on.")]
ValFractionOption = Annotated[
    float | None, typer.Option(help="Share of train to validate on; 0.05 for OOD methods.")
]
NestedValidationOption = Annotated[
    bool,
    typer.Option(
        "--nested-validation",
        help="Validate on OOD data that the same rule takes from train: to develop methods.",
    ),
]
TrainSizeOption = Annotated[int | None, typer.Option(help="Keep so many of train.")]
AvoidOption = Annotated[
    list[Path] | None,
    typer.Option(help="Split of the same store whose validation and test rows no set may have."),
]
PretrainingOption = Annotated[
    Path | None,
    typer.Option(help="Store of structures that the backbone was pretrained on: report overlap."),
]
NearOption = Annotated[
    float,
    typer.Option(
        min=0.0, help="Tolerance of near-duplicates, in standard deviations; 0 = none sought."
    ),
]
SeedOption = Annotated[int, typer.Option(help="Of every draw.")]
SetsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="NAME=VALUE, repeatable: an index file (file), a source file of the store "
        "(sources) or a share (random), e.g. --set test/ood=ood_test.npz",
    ),
]
FileOption = Annotated[
    Path | None, typer.Option(help="File with all sets (file), or with folds (folds).")
]
ByIdOption = Annotated[bool, typer.Option("--by-id", help="Integers in files are ids.")]
NameOption = Annotated[str | None, typer.Option(help="Name of the split.")]
