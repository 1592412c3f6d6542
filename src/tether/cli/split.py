"""`tether split`: a store to a split.json, with its ranges, leakage and reference lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
import typer

from tether.cli.options import DryRunOption, JsonOption
from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from rich.console import Console

    from tether.data.store import Store
    from tether.splits.make import Method, Table
    from tether.splits.property_tail import Side
    from tether.splits.split import Split

__all__ = ["split_command"]

# Structures that are in memory at once while the store is hashed.
_CHUNK = 20_000


def split_command(
    store: Annotated[Path, typer.Argument(help="Store written by `tether prepare`.")],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("split.json"),
    method: Annotated[str, typer.Option(help="boom, tail, random, file or sources.")] = "boom",
    target: Annotated[
        str | None, typer.Option(help="Label to split by; default: the only one of the store.")
    ] = None,
    ood: Annotated[
        float | None, typer.Option(help="OOD structures: a share below 1, or a number.")
    ] = None,
    side: Annotated[str, typer.Option(help="Tail: both, low or high.")] = "both",
    id_fraction: Annotated[
        float, typer.Option(help="Share of what is not OOD for the ID test (boom, tail).")
    ] = 0.05,
    val_size: Annotated[
        int | None, typer.Option(help="Structures of train to validate on.")
    ] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="Share of train to validate on; 0.05 for boom and tail.")
    ] = None,
    train_size: Annotated[int | None, typer.Option(help="Keep so many of train.")] = None,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 42,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUE, repeatable: an index file (file), a source file of the store "
            "(sources) or a share (random), e.g. --set test/ood=ood_test.npz",
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="File with all sets (file).")] = None,
    by_id: Annotated[bool, typer.Option("--by-id", help="Integers in files are ids.")] = False,
    name: Annotated[str | None, typer.Option(help="Name of the split.")] = None,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Divide a store into train, val, test/id and test/ood, and say what the division is like."""
    from tether.data.store import Store
    from tether.splits.make import make_split

    if out.suffix != ".json":
        raise TetherError(
            f"--out {str(out)!r} ends in {out.suffix!r}", expected=".json", fix="--out split.json"
        )
    pairs = _pairs(sets or [])
    split = make_split(
        _table(Store.open(store), target, method),
        cast("Method", method),
        name=name,
        ood=ood,
        side=cast("Side", side),
        id_fraction=id_fraction,
        fractions=_shares(pairs) if method == "random" and pairs else None,
        file=file,
        sets=pairs if method != "random" else None,
        by_id=by_id,
        val_fraction=val_fraction,
        val_size=val_size,
        train_size=train_size,
        seed=seed,
    )
    if not dry_run:
        split.to_json(out)
    if as_json:
        typer.echo(json.dumps(_summary(split, None if dry_run else out)))
    else:
        from rich.console import Console

        _print(split, Console(), None if dry_run else out)


def _table(store: Store, target: str | None, method: str) -> Table:
    from tether.splits.make import Table
    from tether.splits.split import StoreReference

    per_system = [t.name for t in store.targets.values() if t.level == "system"]
    if target is None and len(per_system) == 1:
        target = per_system[0]
    if target is None and method in {"boom", "tail"}:
        raise TetherError(
            f"method {method!r} needs a target and the store has {len(per_system)}",
            expected=f"one of {', '.join(per_system) or '(none)'}",
            fix="add --target NAME",
        )
    if target is not None and target in store.targets and target not in per_system:
        raise TetherError(
            f"target {target!r} is a label of atoms",
            expected=f"a label of structures: {', '.join(per_system) or '(none)'}",
            fix="choose another target",
        )
    return Table(
        n_systems=store.n_systems,
        values=None if target is None else store.label(target),
        target=target or "",
        unit="" if target is None else store.targets[target].unit,
        ids=cast("Sequence[str]", store.ids),
        sources=cast("Sequence[str]", store.sources),
        hashes=_hashes(store),
        store=StoreReference(str(store.path), store.fingerprint, store.n_systems),
    )


def _hashes(store: Store) -> NDArray[np.int64]:
    from tether.data.pieces import pieces
    from tether.splits.leakage import structure_hashes

    parts = [np.zeros(0, dtype=np.int64)]
    for batch in pieces(store, _CHUNK):
        arrays = (batch.numbers.numpy(), batch.positions.numpy(), batch.ptr.numpy())
        parts.append(structure_hashes(*arrays, cell=batch.cell.numpy()))
    return np.concatenate(parts)


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
    for line in [*_notes(report), *_line_texts(lines)]:
        console.print(escape(line), highlight=False, soft_wrap=True)
    written = "dry run: nothing written" if out is None else f"written: {out}"
    console.print(escape(written), highlight=False, soft_wrap=True)


def _notes(report: dict[str, Any]) -> list[str]:
    notes = [
        f"not used: {report['n_unlabelled']:,} unlabelled, {report['n_unused']:,} in no set",
    ]
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
