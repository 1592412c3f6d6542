"""`tether split`: a store to a split.json, with its ranges, leakage and reference lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tether.cli.options import DryRunOption, JsonOption
from tether.cli.split_options import (
    AvoidOption,
    ByIdOption,
    DescriptorsOption,
    FileOption,
    HoldOutOption,
    IdFractionOption,
    MethodOption,
    NameOption,
    NClustersOption,
    NearOption,
    NestedValidationOption,
    NNeighboursOption,
    OodOption,
    OutOption,
    PretrainingOption,
    SeedOption,
    SetsOption,
    SideOption,
    TargetOption,
    TrainSizeOption,
    ValFractionOption,
    ValSizeOption,
    VariantOption,
)
from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from tether.splits.property_tail import Side
    from tether.splits.rule import Method
    from tether.splits.sparse import Variant
    from tether.splits.split import Split
    from tether.splits.table import Table

__all__ = ["split_command"]


def split_command(
    store: Annotated[Path, typer.Argument(help="Store written by `tether prepare`.")],
    out: OutOption = Path("split.json"),
    method: MethodOption = "boom",
    target: TargetOption = None,
    ood: OodOption = None,
    hold_out: HoldOutOption = None,
    descriptors: DescriptorsOption = None,
    n_clusters: NClustersOption = None,
    variant: VariantOption = None,
    n_neighbours: NNeighboursOption = None,
    side: SideOption = None,
    id_fraction: IdFractionOption = None,
    val_size: ValSizeOption = None,
    val_fraction: ValFractionOption = None,
    nested_validation: NestedValidationOption = False,
    train_size: TrainSizeOption = None,
    avoid: AvoidOption = None,
    near: NearOption = 0.01,
    pretraining: PretrainingOption = None,
    seed: SeedOption = 42,
    sets: SetsOption = None,
    file: FileOption = None,
    by_id: ByIdOption = False,
    name: NameOption = None,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Divide a store into train, val, test/id and test/ood, and say what the division is like."""
    from tether.data.store import Store
    from tether.split_table import split_table
    from tether.splits.make import make_split
    from tether.splits.rule import Rule
    from tether.splits.split import Split

    if out.suffix != ".json":
        raise TetherError(
            f"--out {str(out)!r} ends in {out.suffix!r}", expected=".json", fix="--out split.json"
        )
    pairs = _pairs(sets or [])
    rule = Rule(
        cast("Method", method),
        ood=ood,
        side=cast("Side | None", side),
        hold_out=tuple(hold_out or ()),
        n_clusters=n_clusters,
        variant=cast("Variant | None", variant),
        n_neighbours=n_neighbours,
        id_fraction=id_fraction,
        fractions=_shares(pairs) if method == "random" and pairs else None,
        file=file,
        sets=pairs if method != "random" else None,
        by_id=by_id,
        seed=seed,
    )
    opened = Store.open(store)
    others = [Split.from_json(path, fingerprint=opened.fingerprint) for path in avoid or []]
    table = split_table(
        opened, rule, target=target, descriptors=descriptors, compositions=bool(pretraining)
    )
    split = make_split(
        table,
        rule,
        name=name,
        val_fraction=val_fraction,
        val_size=val_size,
        nested=nested_validation,
        train_size=train_size,
        avoid=[rows for other in others for name, rows in other.indices.items() if name != "train"],
        near=near or None,
        pretraining=_seen(pretraining, table.descriptor_name) if pretraining else None,
    )
    if not dry_run:
        split.to_json(out)
    if as_json:
        typer.echo(json.dumps(_summary(split, None if dry_run else out)))
    else:
        from rich.console import Console

        _print(split, Console(), None if dry_run else out)


def _seen(store: Path, descriptors: str) -> Table:
    """Columns of the pretraining structures, with the descriptors of the store that is split."""
    from tether.data.store import Store
    from tether.split_table import DESCRIPTORS, split_table
    from tether.splits.rule import Rule

    # The rows of a file are those of the store that is split.
    made = descriptors if descriptors in DESCRIPTORS else None
    return split_table(Store.open(store), Rule("random"), descriptors=made, compositions=True)


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value or name in pairs:
            raise TetherError(
                f"--set {text!r} is a repeat or has no name or value",
                expected="NAME=VALUE, each name once",
                fix="--set train=train.npz --set test/ood=ood_test.npz",
            )
        pairs[name] = value
    return pairs


def _shares(pairs: dict[str, str]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in pairs.items()}
    except ValueError:
        raise TetherError(
            f"--set {pairs} is not all numbers",
            expected="shares, for method random",
            fix="--set train=0.8 --set test/id=0.2",
        ) from None


def _summary(split: Split, out: Path | None) -> dict[str, Any]:
    return {
        "name": split.name,
        "method": split.method,
        "parameters": split.parameters,
        "sizes": split.sizes,
        "report": split.report,
        "fingerprint": split.fingerprint,
        "out": None if out is None else str(out),
    }


def _print(split: Split, console: Console, out: Path | None) -> None:
    from rich.markup import escape
    from rich.table import Table as Grid

    report, target = split.report, split.parameters["target"]
    ranges = (report["extrapolation"] or {}).get("sets", {})
    lines = report["reference_lines"]
    unit = lines[0]["unit"] if lines else ""
    label = f"{target} ({unit})" if unit else target
    grid = Grid(title=escape(f"{split.name}: {split.method}"))
    grid.add_column("set")
    for heading in ("n", f"{label} from", "to", "outside train"):
        grid.add_column(escape(heading), justify="right")
    for name, size in split.sizes.items():
        row = ranges.get(name)
        cells = ["", "", ""]
        if row:
            outside = f"{row['n_outside']} ({100 * row['fraction_outside']:.1f} %)"
            cells = [f"{row['low']:.6g}", f"{row['high']:.6g}", outside]
        grid.add_row(name, f"{size:,}", *cells)
    console.print(grid)
    for line in [*_notes(split), *_line_texts(lines)]:
        console.print(escape(line), highlight=False, soft_wrap=True)
    written = "dry run: nothing written" if out is None else f"written: {out}"
    console.print(escape(written), highlight=False, soft_wrap=True)


def _notes(split: Split) -> list[str]:
    report = split.report
    avoided = split.parameters.get("n_avoided", 0)
    notes = [
        f"not used: {report['n_unlabelled']:,} unlabelled, {report['n_unused']:,} in no set"
        + (f", {avoided:,} of them avoided" if avoided else ""),
    ]
    nested = split.parameters.get("nested_validation")
    if nested is not None:
        size = f"ood {nested.get('ood', 0):.3g}"
        what = f"it is {', '.join(nested['hold_out'])}" if "hold_out" in nested else size
        notes.append(f"NESTED VALIDATION: val is OOD by the rule of the test; {what}")
    if report.get("unassigned_rows"):
        notes.append(
            f"NOT JUDGED: {len(report['unassigned_rows']):,} structure(s) have no label to hold "
            "out and are in no set (rows in the report)"
        )
    if report.get("n_in_no_fold"):
        notes.append(
            f"IN NO FOLD: {report['n_in_no_fold']:,} structure(s) are in no fold of the file, and "
            "so are trained on or in test/id; are the folds of this store?"
        )
    tied = report.get("ties")
    if tied:
        what = "atoms" if split.method == "size" else "as score"
        notes.append(
            f"TIES: {tied['n_marked']:,} structure(s) with {tied['score']:.6g} {what} are OOD and "
            f"{tied['n_others']:,} are not: row numbers decided"
        )
    notes += _element_notes(report["elements"])
    leakage = report["leakage"] or {"pairs": [], "n_repeats": {}}
    for pair in leakage["pairs"]:
        first, second = pair["sets"]
        rows = pair["rows"]
        notes.append(
            f"LEAKAGE: {pair['n_structures']:,} structure(s) are in both {first} and {second} "
            f"({len(rows[first]):,} and {len(rows[second]):,} rows, listed in the report)"
        )
    if not leakage["pairs"]:
        notes.append("leakage: no structure is in two sets")
    repeats = {name: n for name, n in leakage["n_repeats"].items() if n}
    if repeats:
        listed = ", ".join(f"{name} {n:,}" for name, n in repeats.items())
        notes.append(f"repeated structures within a set: {listed}")
    return [*notes, *_near_notes(leakage.get("near")), *_overlap_notes(split)]


def _element_notes(elements: dict[str, list[dict[str, Any]]]) -> list[str]:
    from tether.report.provenance import N_ELEMENTS

    notes = []
    for name, found in elements.items():
        listed = ", ".join(
            f"{one['element']} in {100 * one['share']:.0f} % ({100 * one['train_share']:.0f} %)"
            for one in found[:N_ELEMENTS]
        )
        if listed:
            notes.append(f"structures of {name} (of train): {listed}")
    return notes


def _overlap_notes(split: Split) -> list[str]:
    overlap = split.report.get("overlap")
    if overlap is None:
        return []
    notes = [f"among {overlap['n_pretraining']:,} pretraining structures (not their labels) are:"]
    for name, counts in overlap["sets"].items():
        listed = ", ".join(
            f"{n:,} by {what.replace('_', ' ')}" for what, n in counts.items() if what != "n"
        )
        notes.append(f"  of {counts['n']:,} in {name}: {listed}")
    if "near" in split.report["leakage"] and "near_duplicate" not in counts:
        descriptors = split.parameters["descriptors"]
        notes.append(f"  near-duplicates of them: not sought, {descriptors} has no rows of them")
    return notes


def _near_notes(near: dict[str, Any] | None) -> list[str]:
    if near is None:
        return []
    meaning = f"within {near['tolerance']:g} by {near['descriptors']}"
    if not near["pairs"]:
        return [f"near-duplicates {meaning}: none between two sets"]
    notes = []
    for pair in near["pairs"]:
        counts = " and ".join(f"{len(pair['rows'][name]):,} of {name}" for name in pair["sets"])
        notes.append(f"NEAR-DUPLICATES {meaning}: {pair['n_pairs']:,} pair(s), {counts}")
    return notes


def _line_texts(lines: Sequence[dict[str, Any]]) -> list[str]:
    errors: dict[tuple[str, str], dict[str, float]] = {}
    for line in lines:
        key = (line["name"], line["subset"])
        errors.setdefault(key, {})[line["metric"]] = line["value"]
    unit = lines[0]["unit"] if lines else ""
    return [
        f"{name} on {subset}: MAE {by_metric['mae']:.4g}, RMSE {by_metric['rmse']:.4g} {unit}"
        for (name, subset), by_metric in errors.items()
    ]
