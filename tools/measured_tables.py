"""Tables of what is measured beside comparisons: steps, the store, ranks, kills, and trials.

Each function takes the content of one file of ``benchmarks/results/`` and gives Markdown;
`results_table` writes it into the documents.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["MEASURED", "markdown", "runs_table", "trials_table"]

#: Where the geometries and labels of the trials' force field are from.
GEOMETRIES = {"pseudo": "own", "wide": "wide", "xtb": "own, GFN2-xTB"}


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def step_table(content: dict[str, Any]) -> str:
    """Ratios of steps, taken round by round, and the time of a graph."""
    rows = [(name, f"{ratio:.2f}") for name, ratio in content["ratios"].items()]
    graph = content["graph_ms"]
    graphs = graph if isinstance(graph, dict) else {"tether": graph}
    rows += [(f"graph of a structure: {name}", f"{ms:.2f} ms") for name, ms in graphs.items()]
    batch = ", ".join(f"{n:,} {name}" for name, n in content.get("batch", {}).items())
    return markdown([f"a batch of {batch or 'molecules'}", ""], rows)


def loader_table(content: dict[str, Any]) -> str:
    """Rates, times and memory of a store of many structures."""
    write, read, epoch = content["write"], content["read"], content["epoch"]

    def rates(of: Mapping[str, float]) -> str:
        return "; ".join(f"{rate:,.0f} ({size})" for size, rate in of.items())

    rows = [
        ("written, structures a second", f"{write['structures_per_cpu_second']:,.0f}"),
        ("on disk; most memory of the writer", _mib(write["disk_mib"], write["peak_mib"])),
        ("opened", f"{read['opening_ms']['fastest']:.1f} ms"),
        (
            "read, structures a second (random batches of)",
            rates(read["structures_per_cpu_second"]),
        ),
        ("with neighbour lists", rates(read["with_neighbour_lists"])),
        *(
            (f"a {name} waits for its batch", f"{waits['median_ms']:.1f} ms")
            for name, waits in content["waits"].items()
            if isinstance(waits, dict)
        ),
        ("memory of an epoch", _mib(epoch["own_mib"]["median"])),
        ("its growth, bytes a structure", f"{epoch['own_growth_bytes_per_structure']:.1f}"),
    ]
    title = f"{content['n']:,} molecules of {content['n_atoms']} atoms"
    return markdown([title, ""], rows)


def _mib(*values: float) -> str:
    return "; ".join(f"{value:,.0f} MiB" for value in values)


def scale_table(content: dict[str, Any]) -> str:
    """Slopes of the logarithm of a step's cost, and what two ranks lose."""
    weak = content["weak_scaling"]
    rows = [
        (f"slope against {what}", f"{content[what]['slope']:.2f}")
        for what in ("structures", "atoms")
    ]
    rows += [
        (f"the same, between the last two sizes, {what}", f"{content[what]['last_slope']:.2f}")
        for what in ("structures", "atoms")
    ]
    rows.append((f"slope against ranks (up to {weak['ranks']})", f"{weak['slope']:.2f}"))
    for how, name in (("clock", "by the clock"), ("cpu", "in CPU time")):
        found = weak[how]
        rows += [
            (f"weak-scaling efficiency {name}", f"{found['efficiency']:.2f}"),
            (
                f"of two processes that know nothing of each other, {name}",
                f"{found['efficiency_beside']:.2f}",
            ),
        ]
    return markdown(["cost of a step", ""], rows)


def writer_kills_table(content: dict[str, Any]) -> str:
    """Kills of the writer of a store."""
    finished = content["shards_finished_at_the_kill"]
    unfinished = sum(n < content["n_shards"] for n in finished)
    rows = [
        ("kills, of which hit an unfinished store", f"{content['n_kills']}, {unfinished}"),
        ("structures lost; shards corrupt", f"{content['lost']}; {content['corrupt']}"),
        ("same fingerprint every time", "yes" if content["all_fingerprints_equal"] else "no"),
    ]
    return markdown(["writer of a store", ""], rows)


def rank_kills_table(content: dict[str, Any]) -> str:
    """Kills of one of several ranks."""
    same = content["runs_with_the_bits_of_an_unkilled_one"]
    rows = [
        ("kills of a random rank", f"{content['kills']}"),
        ("jobs that ended with an error", f"{content['jobs_that_ended_with_an_error']}"),
        ("latest end after a kill", f"{content['seconds_until_the_job_ended']['largest']:.2f} s"),
        ("runs with the bits of an unkilled one", f"{same} of {content['runs']}"),
    ]
    return markdown([f"one of {content['ranks']} ranks", ""], rows)


def labeller_kills_table(content: dict[str, Any]) -> str:
    """Kills of labelling workers and drivers."""
    rows = [(f"kills of a {victim}", str(n)) for victim, n in content["kills"].items()]
    rows += [
        (
            "shards lost; not taken up",
            f"{content['shards_lost']}; {content['shards_not_taken_up']}",
        ),
        ("workers left behind", str(content["workers_left"])),
        ("stores unlike the first", str(content["other_stores"])),
    ]
    return markdown(["labelling", ""], rows)


#: What writes the table of a file, by its name.
MEASURED: dict[str, Callable[[dict[str, Any]], str]] = {
    "step.json": step_table,
    "step_chgnet.json": step_table,
    "step_sevennet.json": step_table,
    "loader.json": loader_table,
    "scale.json": scale_table,
    "kill_writer.json": writer_kills_table,
    "kill_rank.json": rank_kills_table,
    "kill_labeller.json": labeller_kills_table,
}


def runs_table(suites: Sequence[Path]) -> str:
    """Every finished run of suites that choose or explain something: a row a run.

    Validation comes first: that is what choices are made by.
    """
    rows = []
    for suite in suites:
        metric = _metric(suite)
        for file in sorted(suite.glob("*/runs/*/metrics.json")):
            metrics = json.loads(file.read_text())
            known = {
                (row["subset"], row["metric"]): f"{row['value']:.3g}" for row in metrics["rows"]
            }
            errors = [known[subset, metric] for subset in ("val", "test/id", "test/ood")]
            unit = ", ".join(filter(None, (metric.upper(), metrics["rows"][0]["unit"])))
            task = f"{file.parents[2].name} ({unit})"
            forces = (metrics.get("forgetting") or {}).get("after", {}).get("force_mae")
            moved = "–" if forces is None else f"{forces:.3f}"
            rows.append([suite.name, task, file.parent.name, *errors, moved])
    heads = ["suite", "task", "run", "validation", "ID test", "OOD test", "force MAE"]
    return markdown(heads, rows)


def _metric(suite: Path) -> str:
    """What a suite is judged by."""
    results = suite / "results.json"
    return json.loads(results.read_text())["metric"] if results.exists() else "rmse"


def trials_table(sources: Sequence[Path]) -> str:
    """Every trial of comparisons on one split: a row a recipe and its settings, the first seed.

    Parameters
    ----------
    sources : sequence of Path
        Folders with a ``summary.json`` each. A trial that stands in two is shown once.
    """
    rows: dict[tuple[str, ...], list[str]] = {}
    for source in sources:
        summary = json.loads((source / "summary.json").read_text())
        for entry in summary["config"]["recipes"]:
            recipe = {"base": entry} if isinstance(entry, str) else entry
            name = recipe.get("name", recipe["base"])
            if cells := _trial(summary, recipe, name):
                rows.setdefault(tuple(cells), cells)
    heads = ["steps", "recipe", "lr", "decay", "weight", "geometries"]
    ordered = sorted(rows.values(), key=lambda cells: (int(cells[0].replace(",", "")), cells[1]))
    return markdown([*heads, "ID val", "force MAE", "ID test", "OOD test"], ordered)


def _trial(summary: dict[str, Any], recipe: dict[str, Any], name: str) -> list[str]:
    training = summary["config"]["training"]
    errors = {
        row["subset"]: row["value"]
        for row in summary["rows"]
        if (row["recipe"], row["seed"], row["metric"]) == (name, 0, "rmse")
    }
    forces = [f for f in summary["forgetting"] if (f["recipe"], f["seed"]) == (name, 0)]
    if not errors:
        return []
    multitask = recipe["base"].startswith("mft")
    auxiliary = summary["config"]["auxiliary"].rpartition("/")[2].removesuffix(".arrow")
    return [
        f"{training['property_steps']:,}",
        recipe["base"],
        f"{recipe.get('lr', training.get('lr', 5e-4)):g}",
        f"{recipe['decay']:g}" if "decay" in recipe else "–",
        f"{recipe['forcefield_weight']:g}" if "forcefield_weight" in recipe else "–",
        GEOMETRIES[auxiliary] if multitask else "–",
        f"{errors['val']:.5f}",
        f"{forces[0]['force_mae_after']:.3f}" if forces else "–",
        f"{errors['test/id']:.5f}",
        f"{errors['test/ood']:.5f}",
    ]
