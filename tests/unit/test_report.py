"""The report of a comparison: its numbers, its gaps, and names that try to break out of it."""

from __future__ import annotations

import itertools
import json
import math
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tether.cli.tables import print_comparison
from tether.errors import TetherError
from tether.report.build import build_report
from tether.report.figures import error_bars, learning_curves
from tether.report.format import format_gain, format_p, format_quantity, n_decimals
from tether.report.panels import MAX_POINTS, curve_panels, subsample
from tether.report.provenance import elements_table, flatten, split_table, training_range
from tether.report.read import Comparison, Run, read_comparison
from tether.report.results import average_forgetting
from tether.report.tables import runs_table
from tether.report.verdict import remarks, verdict

# DPA-3.1-3M on BOOM's QM9 gap (REFERENCE.md), RMSE in Ha; layerwise interpolated.
RMSE = {
    "scratch": (0.00455, 0.02435),
    "probe": (0.00773, 0.01929),
    "full": (0.00338, 0.02010),
    "layerwise": (0.00345, 0.01962),
    "mft": (0.00339, 0.01713),
}
FORCE_AFTER = {"scratch": None, "probe": 0.0486, "full": 1.92, "layerwise": 1.31, "mft": 0.0511}
SEEDS = (0, 1, 2)
N = 600
SIZES = {"train": 5000, "val": 500, "test/id": N, "test/ood": N}


def _labels(generator: np.random.Generator) -> dict[str, np.ndarray]:
    tails = np.where(
        generator.random(N) < 0.5, generator.uniform(0.03, 0.12, N), generator.uniform(0.37, 0.5, N)
    )
    middle = np.clip(generator.normal(0.25, 0.045, N), 0.125, 0.365)
    return {"test/id": middle, "test/ood": tails}


def _predict(true: np.ndarray, rmse: float, generator: np.random.Generator) -> np.ndarray:
    # Far from the middle a model is drawn back to it: half of the error is such a pull.
    pull = -np.sign(true - 0.25) * np.maximum(np.abs(true - 0.25) - 0.11, 0)
    raw = generator.normal(0, 1, N) + 40 * pull
    return true + raw * rmse / np.sqrt(np.mean(raw**2))


def _write_log(run: Path, recipe: str, n_steps: int, generator: np.random.Generator) -> None:
    lines = []
    for step in range(10, n_steps + 1, 10):
        progress = math.exp(-step / 900)
        noise = math.exp(0.15 * generator.normal())
        losses = {"property": (0.01 + 0.6 * progress) * noise}
        if recipe == "mft":
            losses["forcefield"] = 0.05 * noise
        lines.append({"event": "train", "step": step, "losses": losses, "lr": 5e-4, "seconds": 0.1})
        if step % 250 == 0:
            after = FORCE_AFTER[recipe]
            error = None if after is None else 0.047 + (after - 0.047) * (1 - progress)
            forces = None if error is None else {"force_mae": error, "energy_mae_per_atom": 0.01}
            value = RMSE[recipe][0] * (1 + 3 * progress) * math.exp(0.02 * generator.normal())
            mae = {"gap": 0.75 * value}
            entry = {"event": "validate", "step": step, "val_loss": value * 20}
            lines.append(
                {**entry, "val_mae": mae, "val_rmse": {"gap": value}, "forcefield": forces}
            )
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _forgetting(recipe: str) -> dict[str, Any]:
    after = FORCE_AFTER[recipe]
    known = after is not None
    return {
        "force_mae_before": 0.047 if known else None,
        "force_mae_after": after,
        "energy_mae_before": 0.0081 if known else None,
        "energy_mae_after": 0.17 * after if known else None,
    }


def write_run(folder: Path, recipe: str, seed: int, ids: list[str], n_steps: int = 3000) -> Path:
    """A finished run whose errors scatter around the published ones."""
    generator = np.random.default_rng([seed, list(RMSE).index(recipe)])
    labels = _labels(np.random.default_rng(7))
    run = folder / f"{recipe}-s{seed}"
    run.mkdir(parents=True)
    columns: dict[str, list[Any]] = {"true": [], "pred": [], "subset": []}
    rows = []
    for subset, rmse in zip(("test/id", "test/ood"), RMSE[recipe], strict=True):
        true = labels[subset]
        pred = _predict(true, rmse * (1 + 0.03 * generator.normal()), generator)
        columns["true"] += true.tolist()
        columns["pred"] += pred.tolist()
        columns["subset"] += [subset] * N
        common = {"target": "gap", "unit": "Ha", "subset": subset, "n": N}
        error = pred - true
        rows.append({**common, "metric": "mae", "value": float(np.abs(error).mean())})
        rows.append({**common, "metric": "rmse", "value": float(np.sqrt(np.mean(error**2)))})
    nothing = pa.nulls(2 * N, pa.float64())
    names = {
        "id": ids,
        "target": ["gap"] * (2 * N),
        **columns,
        "std": nothing,
        "ood_score": nothing,
    }
    pq.write_table(pa.table(names), run / "predictions.parquet")
    flat = _forgetting(recipe)
    forgetting = {
        when: {
            "energy_mae_per_atom": flat[f"energy_mae_{when}"],
            "force_mae": flat[f"force_mae_{when}"],
            "force_rmse": None,
        }
        for when in ("before", "after")
    }
    metrics = {
        "rows": rows,
        "forgetting": forgetting,
        "property_steps": n_steps,
        "forcefield_steps": n_steps if recipe == "mft" else 0,
        "seconds": 812.4 if recipe == "mft" else 455.0,
        "best_step": n_steps - 250,
    }
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "config.yaml").write_text(f"recipe: {recipe}\nseed: {seed}\n")
    (run / "provenance.json").write_text(json.dumps(_provenance()))
    indices = {name: list(range(size)) for name, size in SIZES.items()}
    split = {"name": "gap-tail", "method": "property_tail", "parameters": {}, "indices": indices}
    (run / "split.json").write_text(json.dumps({**split, "store": {}, "report": _split_report()}))
    _write_log(run, recipe, n_steps, generator)
    return run


def _provenance() -> dict[str, Any]:
    versions = {"tether": "0.1.0", "torch": "2.13.0", "python": "3.11.9"}
    sha256 = {"checkpoint": "9f" * 32, "split": "3a" * 32, "store": "c4" * 32}
    return {"versions": versions, "sha256": sha256, "device": "cpu", "started": "2026-11-24T18:00Z"}


def _split_report() -> dict[str, Any]:
    def entry(n: int, low: float, high: float, outside: int) -> dict[str, Any]:
        counts = {"n_below": outside // 2, "n_above": outside - outside // 2, "n_outside": outside}
        return {"n": n, "low": low, "high": high, **counts, "fraction_outside": outside / n}

    sets = {
        "train": entry(5000, 0.123, 0.366, 0),
        "val": entry(500, 0.126, 0.361, 0),
        "test/id": entry(N, 0.125, 0.365, 0),
        "test/ood": entry(N, 0.031, 0.499, N),
    }
    pair = {"sets": ["train", "test/id"], "n_structures": 2, "rows": {"train": [17, 99]}}
    return {
        "n_unlabelled": 0,
        "bandwidth_in_std": 0.0954,
        "leakage": {"pairs": [pair], "n_repeats": dict.fromkeys(SIZES, 0)},
        "extrapolation": {"id_low": 0.123, "id_high": 0.366, "sets": sets},
    }


def _summary_rows(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = []
    for recipe, metrics in runs.items():
        cost = {"property_steps": 3000, "seconds": metrics[0]["seconds"]}
        for idx in range(4):
            first = metrics[0]["rows"][idx]
            values = [entry["rows"][idx]["value"] for entry in metrics]
            for seed, value in zip(SEEDS, values, strict=True):
                own = {"seed": seed, "value": value, "low": 0.95 * value, "high": 1.06 * value}
                rows.append({"recipe": recipe, **first, **own, **cost})
            mean = float(np.mean(values))
            own = {"seed": "pooled", "value": mean, "low": 0.963 * mean, "high": 1.041 * mean}
            rows.append({"recipe": recipe, **first, **own, **cost})
    return rows


def _gains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pooled = {
        (row["recipe"], row["subset"], row["metric"]): row["value"]
        for row in rows
        if row["seed"] == "pooled"
    }
    gains = []
    for (recipe, subset, metric), value in pooled.items():
        for reference in {"scratch", "full"} - {recipe}:
            percent = 100 * (1 - value / pooled[reference, subset, metric])
            entry = {"recipe": recipe, "reference": reference, "target": "gap", "subset": subset}
            numbers = {"gain_percent": percent, "low": percent - 3.5, "high": percent + 3.5}
            p_value = 0.0004 if abs(percent) > 8 else min(1.0, 0.6 / (1 + abs(percent)))
            gains.append({**entry, "metric": metric, **numbers, "p_value": p_value, "n_seeds": 3})
    return gains


def _limit_distances(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pooled = {
        (row["recipe"], row["subset"], row["metric"]): row["value"]
        for row in rows
        if row["seed"] == "pooled"
    }
    found = []
    for recipe, metric in itertools.product(RMSE, ("mae", "rmse")):
        gap, unit = (
            pooled[name, "test/ood", metric] - pooled[name, "test/id", metric]
            for name in (recipe, "full")
        )
        entry = {"recipe": recipe, "reference": "full", "target": "gap", "subset": "test/ood"}
        interval = {"low": gap / unit - 0.05, "high": gap / unit + 0.05, "n_seeds": 3}
        found.append({**entry, "metric": metric, "value": gap / unit, **interval})
    return found


def write_comparison(folder: Path, *, ids: list[str] | None = None) -> dict[str, Any]:
    """A comparison folder with every file of the format; returns its summary."""
    ids = ids or [f"qm9-{idx:06d}" for idx in range(2 * N)]
    runs: dict[str, list[dict[str, Any]]] = {}
    for recipe in RMSE:
        paths = [write_run(folder / "runs", recipe, seed, ids) for seed in SEEDS]
        runs[recipe] = [json.loads((path / "metrics.json").read_text()) for path in paths]
    rows = _summary_rows(runs)
    reference = {"target": "gap", "unit": "Ha"}
    lines = {
        ("mean predictor", "test/id"): (0.0341, 0.0439),
        ("mean predictor", "test/ood"): (0.1625, 0.1701),
        ("clip oracle", "test/ood"): (0.0131, 0.0197),
    }
    config = {"recipes": list(RMSE), "seeds": list(SEEDS), "training": {"property_steps": 3000}}
    backbone = {"name": "so3lr", "licence": "MIT", "cutoff": 4.5, "elements": [1, 6, 7, 8, 9]}
    summary = {
        "format": 1,
        "rows": rows,
        "gains": _gains(rows),
        "limit_distances": _limit_distances(rows),
        "reference_lines": [
            {"name": name, **reference, "subset": subset, "metric": metric, "value": value}
            for (name, subset), values in lines.items()
            for metric, value in zip(("mae", "rmse"), values, strict=True)
        ],
        "forgetting": [
            {"recipe": recipe, "seed": seed, **_forgetting(recipe)}
            for recipe in RMSE
            for seed in SEEDS
        ],
        "split": {
            "name": "gap-tail",
            "method": "property_tail",
            "sizes": SIZES,
            "report": _split_report(),
        },
        "backbone": {**backbone, "level_of_theory": "PBE0+MBD"},
        "provenance": _provenance(),
        "config": config,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text("recipes: [scratch, probe, full, layerwise, mft]\n")
    return summary


class _Page(HTMLParser):
    """Every element with its attributes, the text of the page, and tables as lists of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.data: list[tuple[float, str]] = []
        self._value: float | None = None
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        self._in_script = tag in {"script", "style"}
        self._value = float(attributes["value"] or "nan") if tag == "data" else None

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False
        self._value = None

    def handle_data(self, data: str) -> None:
        if self._value is not None:
            self.data.append((self._value, data))
        if not self._in_script and data.strip():
            self.text.append(data.strip())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_comparison(tmp_path)
    return tmp_path


def _summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def _page(folder: Path) -> _Page:
    return _Page(build_report(folder).read_text(encoding="utf-8"))


def test_every_number_of_the_summary_is_on_the_page(folder: Path) -> None:
    summary, page = _summary(folder), _page(folder)
    shown = {value for value, _ in page.data}
    wanted = {row["value"] for row in summary["rows"]}
    wanted |= {gain["gain_percent"] for gain in summary["gains"] if gain["metric"] == "rmse"}
    wanted |= {e["value"] for e in summary["limit_distances"] if e["metric"] == "rmse"}
    wanted |= {line["value"] for line in summary["reference_lines"]}
    for entry in summary["forgetting"]:
        wanted |= {entry[key] for key in ("force_mae_before", "force_mae_after")} - {None}
    assert len(wanted) > 80
    # Means over equal seeds may differ from the seeds in the last bit.
    missing = [v for v in wanted if not any(math.isclose(v, s, rel_tol=1e-12) for s in shown)]
    assert missing == []
    assert not any(math.isclose(0.123456, s) for s in shown)


def test_shown_text_is_the_rounded_value(folder: Path) -> None:
    page = _page(folder)
    assert len(page.data) > 100
    for value, text in page.data:
        plain = text.replace("−", "-").replace(",", "").replace("×", "").split(" ")[0]
        decimals = len(plain.partition(".")[2])
        assert abs(float(plain) - value) <= 0.5001 * 10**-decimals, (value, text)


def test_intervals_and_p_values_are_in_the_overview(folder: Path) -> None:
    summary, text = _summary(folder), _page(folder).text
    mft = next(
        row
        for row in summary["rows"]
        if (row["recipe"], row["seed"], row["subset"], row["metric"])
        == ("mft", "pooled", "test/ood", "rmse")
    )
    decimals = 4
    assert f"[{mft['low']:.{decimals}f}, {mft['high']:.{decimals}f}]" in text
    assert "p < 0.001" in text


def test_page_is_one_small_file_that_loads_nothing(folder: Path) -> None:
    path = build_report(folder)
    assert path == folder / "report.html"
    assert 1e6 < path.stat().st_size < 10e6
    page = _Page(path.read_text(encoding="utf-8"))
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data"):
            address = attributes.get(name) or ""
            assert address.startswith(("#", "data:")) or not address, (tag, address)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_tables_and_figures_are_described(folder: Path) -> None:
    page = _page(folder)
    names = [tag for tag, _ in page.elements]
    assert names.count("table") == names.count("caption") >= 8
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    plots = [attributes for _, attributes in page.elements if attributes.get("class") == "plot"]
    assert len(plots) == 4 + len(RMSE) + 3
    assert all(len(plot["aria-label"] or "") > 40 and plot["tabindex"] == "0" for plot in plots)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag in names if tag in {"h1", "h2", "h3", "h4"}]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_unfinished_and_damaged_runs_do_not_break_the_page(folder: Path) -> None:
    runs = folder / "runs"
    for name in ("metrics.json", "predictions.parquet"):
        (runs / "probe-s0" / name).unlink()
    for seed in SEEDS:
        (runs / f"layerwise-s{seed}" / "predictions.parquet").write_bytes(b"PAR1 not parquet")
    with (runs / "full-s0" / "log.jsonl").open("a") as stream:
        stream.write('{"event": "train", "st')
    (runs / "lora-s0").mkdir()
    (folder / "summary.json").write_text(
        json.dumps({**_summary(folder), "missing_runs": ["lora-s0"]})
    )
    text = " ".join(_page(folder).text)
    assert "metrics.json is not there: the run did not finish" in text
    assert "1 unreadable line(s) of log.jsonl left out" in text
    assert "not available: predictions.parquet cannot be read" in text
    assert "Not finished, and not in the tables: probe-s0, lora-s0." in text


def test_summary_without_optional_parts(folder: Path) -> None:
    summary = _summary(folder)
    summary["rows"] = [row for row in summary["rows"] if row["recipe"] not in {"full", "scratch"}]
    for key in ("gains", "reference_lines", "forgetting"):
        summary[key] = []
    del summary["limit_distances"]  # of comparisons made before there was such a thing
    for key in ("split", "backbone", "provenance", "config"):
        del summary[key]
    (folder / "config.yaml").unlink()
    (folder / "summary.json").write_text(json.dumps(summary))
    text = " ".join(_page(folder).text)
    assert "not available: no split was stored" in text
    assert "not available: no run measured a force field" in text
    assert "not available: no configuration was stored" in text
    assert "there is no reference recipe to compare with" in text
    assert "Smaller is better. Every seed" in text


def test_summary_without_rows(folder: Path) -> None:
    (folder / "summary.json").write_text(json.dumps({"format": 1, "rows": []}))
    text = " ".join(_page(folder).text)
    assert "No run has finished, so there is nothing to compare yet." in text
    assert "probe" in text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>"
    write_comparison(tmp_path, ids=[attack] * (2 * N))
    summary = _summary(tmp_path)
    for key in ("rows", "gains", "limit_distances", "forgetting"):
        for entry in summary[key]:
            entry["recipe"] = attack if entry["recipe"] == "probe" else entry["recipe"]
    summary["split"]["name"] = summary["backbone"]["name"] = attack
    summary["split"]["report"][attack] = attack
    summary["provenance"][attack] = attack
    summary["missing_runs"] = ["<script>alert(3)<b>-s0"]
    (tmp_path / "runs" / "<img>-s0").mkdir()
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "config.yaml").write_text(f"recipe: {attack}\n")
    (tmp_path / "runs" / "<script>alert(3)<b>-s0").mkdir()
    (tmp_path / "runs" / "<script>alert(3)<b>-s0" / "log.jsonl").write_text(
        json.dumps({"event": "train", "step": 1, "losses": {"property": 1.0}}) + "\n"
    )
    page = _page(tmp_path)
    assert [tag for tag, _ in page.elements if tag == "img"] == []
    clean = write_reference_scripts(tmp_path)
    assert [tag for tag, _ in page.elements].count("script") == clean
    assert attack in page.text


def write_reference_scripts(folder: Path) -> int:
    """Scripts of a page: one a figure (four bars, parity, three curves), plotly and ours."""
    n_recipes_with_predictions = 4
    # The summary knows the runs of `probe` by another name: they are left out.
    assert len(read_comparison(folder).runs) == n_recipes_with_predictions * len(SEEDS) + 1
    return 4 + n_recipes_with_predictions + 3 + 2


def test_missing_summary_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TetherError, match=r"no summary\.json in .*expected a comparison folder"):
        build_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 1, "rows": [', "cannot be read"),
        ("[]", "`format` of .* is 'list'; expected 1"),
        ('{"format": 2, "rows": []}', "`format` of .* is 2; expected 1"),
        ('{"format": 1, "rows": [{"recipe": "mft"}]}', "`rows` in .* has no seed, target, unit"),
    ],
)
def test_bad_summary_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(TetherError, match=message):
        build_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_single_run_gets_a_report(tmp_path: Path) -> None:
    ids = [f"qm9-{idx}" for idx in range(2 * N)]
    run = write_run(tmp_path, "mft", 0, ids)
    page = _page(run)
    metrics = json.loads((run / "metrics.json").read_text())
    shown = {value for value, _ in page.data}
    assert {row["value"] for row in metrics["rows"]} <= shown
    text = " ".join(page.text)
    assert "Run: mft-s0" in text
    assert "5,000" in text
    (run / "metrics.json").unlink()
    text = " ".join(_page(run).text)
    assert "metrics.json is not there: the run did not finish" in text
    # What it has logged is shown all the same.
    assert "Validation RMSE" in text
    assert "One line a run." in text
    (run / "log.jsonl").unlink()
    assert "Validation RMSE" not in " ".join(_page(run).text)


def test_a_run_is_of_the_recipe_that_it_was_started_with(tmp_path: Path) -> None:
    run = write_run(tmp_path, "mft", 0, [f"qm9-{idx}" for idx in range(2 * N)])
    run = run.rename(tmp_path / "full-s5")
    (found,) = read_comparison(run).runs
    assert (found.recipe, found.seed) == ("full", 5)  # all that is known of it
    (run / "state").mkdir()
    identity = {"recipe": {"name": "mft", "forcefield": True}, "seed": 0}
    (run / "state" / "identity.json").write_text(json.dumps(identity))
    comparison = read_comparison(run)
    assert (comparison.runs[0].recipe, comparison.runs[0].seed) == ("mft", 0)
    assert {row["recipe"] for row in comparison.summary["rows"]} == {"mft"}


@pytest.mark.parametrize("file", ["metrics.json", "state/identity.json"])
def test_a_pretraining_is_refused(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "full-s0"
    (folder / "state").mkdir(parents=True)
    (folder / "log.jsonl").write_text("")
    (folder / file).write_text(json.dumps({"objective": {"kind": "denoising"}, "seed": 0}))
    with pytest.raises(TetherError, match=r"holds a pretraining; .* results are in .*s0/card\.md"):
        build_report(folder)
    assert not (folder / "report.html").exists()


def test_runs_that_the_summary_does_not_know_are_left_out(folder: Path) -> None:
    """A recipe or a seed that was taken out of the configuration keeps its folder."""
    write_run(folder / "runs", "mft", 7, [f"qm9-{idx}" for idx in range(2 * N)])
    (folder / "runs" / "mft-s7").rename(folder / "runs" / "lora-s0")
    write_run(folder / "runs", "mft", 7, [f"qm9-{idx}" for idx in range(2 * N)])
    (folder / "runs" / "wise-s0").mkdir()
    summary = {**_summary(folder), "missing_runs": ["wise-s0"]}
    (folder / "summary.json").write_text(json.dumps(summary))
    comparison = read_comparison(folder)
    assert comparison.left_out == ["lora-s0", "mft-s7"]
    assert len(comparison.runs) == len(RMSE) * len(SEEDS) + 1
    page = _page(folder)
    text = " ".join(page.text)
    assert "Left out, as summary.json does not know them" in text
    assert "did not name): lora-s0, mft-s7." in text
    assert "Not finished, and not in the tables: wise-s0." in text
    assert "lora" not in [words.strip() for words in page.text]


def test_failed_write_leaves_the_old_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_report(folder).write_text("old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        build_report(folder)
    assert (folder / "report.html").read_text() == "old"
    assert not list(folder.glob(".report-*"))


def _with_gain(folder: Path, recipe: str, ood: float) -> dict[str, Any]:
    summary = _summary(folder)
    for gain in summary["gains"]:
        if gain["reference"] == "full" and gain["subset"] == "test/ood":
            percent = ood if gain["recipe"] == recipe else -40.0
            gain.update(gain_percent=percent, low=percent - 3.5, high=percent + 3.5, p_value=0.02)
    return summary


def test_verdict_says_what_the_gains_say(folder: Path) -> None:
    sentence = verdict(_with_gain(folder, "mft", 12.04), "gap")
    assert sentence.startswith("mft: OOD RMSE 12.0 % below full (interval [8.5, 15.5] %, p = 0.020")
    assert "best of 3 alternatives" in sentence
    id_gain = next(
        gain["gain_percent"]
        for gain in _summary(folder)["gains"]
        if (gain["recipe"], gain["reference"], gain["subset"], gain["metric"])
        == ("mft", "full", "test/id", "rmse")
    )
    side = "lower" if id_gain > 0 else "higher"
    assert sentence.endswith(f"; ID error {abs(id_gain):.1f} % {side}.")


def test_verdict_names_scratch_where_it_alone_is_ahead(folder: Path) -> None:
    summary = _with_gain(folder, "probe", -5.0)
    for gain in summary["gains"]:
        if (gain["recipe"], gain["reference"]) == ("scratch", "full"):
            gain["gain_percent"] = 2.04
    sentence = verdict(summary, "gap")
    assert sentence.startswith(
        "No recipe but scratch, 2.0 % below it, beats full on OOD RMSE; the nearest, probe: "
    )


def test_verdict_is_honest_when_it_loses_or_does_not_know(folder: Path) -> None:
    sentence = verdict(_with_gain(folder, "probe", -5.0), "gap")
    assert sentence.startswith("No recipe beats full on OOD RMSE; the nearest, probe: OOD RMSE 5.0")
    assert "5.0 % above full (interval [1.5, 8.5] %" in sentence
    unclear = verdict(_with_gain(folder, "mft", 1.0), "gap")
    assert "not distinguishable from no difference" in unclear
    assert "not distinguishable" not in verdict(_with_gain(folder, "mft", 12.0), "gap")


def test_verdict_says_why_there_is_no_gain(folder: Path) -> None:
    summary = {**_summary(folder), "gains": []}

    def why(summary: dict[str, Any], *recipes: str, **changes: Any) -> str:
        rows = [row for row in summary["rows"] if row["recipe"] in recipes]
        sentence = verdict({**summary, "rows": rows, **changes}, "gap")
        return sentence[sentence.rindex("(") + 1 : -2]

    assert why(summary, "mft") == "there is no reference recipe to compare with"
    missing = ["probe-s0", "full-s0", "full-s1"]
    assert why(summary, "mft", missing_runs=missing) == "no run of full has finished"
    assert why(summary, "full") == "there is no recipe to compare with full"
    assert why(summary, "full", "scratch") == "there is no recipe to compare with full and scratch"
    own = {"references": ["probe"]}
    assert why(summary, "full", "mft", config=own) == "there is no reference recipe to compare with"
    assert why(summary, "probe", config=own) == "there is no recipe to compare with probe"
    for row in summary["rows"]:
        if row["recipe"] == "full" and row["subset"] == "test/ood":
            row["value"] = None
    assert why(summary, "full", "mft") == "no OOD RMSE of full is known"
    for row in summary["rows"]:
        row["value"] = 0.0 if row["value"] is None else row["value"]
    assert why(summary, "full", "mft") == "the OOD RMSE of full is 0"
    later = [row for row in summary["rows"] if (row["recipe"], row["seed"]) == ("scratch", 1)]
    later += [row for row in summary["rows"] if (row["recipe"], row["seed"]) == ("mft", 0)]
    found = why({**summary, "rows": later}, "scratch", "mft")
    assert found == "no other recipe has finished on a seed of scratch"


def test_remark_says_whether_anything_extrapolates(folder: Path) -> None:
    summary = _summary(folder)
    assert "beat the clip oracle OOD; mft, the best, is" in remarks(summary, "gap")[0]
    for line in summary["reference_lines"]:
        line["value"] *= 0.5
    assert remarks(summary, "gap")[0].startswith("No recipe beats the clip oracle OOD (mft")


def test_parity_states_how_many_points_it_shows(folder: Path) -> None:
    assert "Seed 0; 1,200 of 1,200 test predictions shown." in " ".join(_page(folder).text)
    kept = subsample(10 * MAX_POINTS, MAX_POINTS)
    assert len(kept) == len(set(kept.tolist())) == MAX_POINTS
    assert kept.max() > 5 * MAX_POINTS
    np.testing.assert_array_equal(kept, subsample(10 * MAX_POINTS, MAX_POINTS))


def test_formats() -> None:
    assert n_decimals([0.00338, 0.0202]) == 5
    assert n_decimals([1234.5]) == 0
    assert format_quantity(1e-9, 3) == "1.00e-09"
    assert format_quantity(math.nan, 3) == format_quantity(None, 3) == "—"
    assert (format_gain(-0.04), format_gain(-12.34)) == ("0.0", "−12.3")
    assert (format_p(0.0), format_p(0.5)) == ("p < 0.001", "p = 0.500")
    assert dict(flatten({"a": [{"b": None}], "c": list(range(20))})) == {
        "a[0].b": "not available",
        "c": "20 values: 0, 1, 2, …",
    }


@pytest.mark.parametrize("width", [80, 100, 140])
def test_terminal_table_fits_and_holds_the_numbers(folder: Path, width: int) -> None:
    console = Console(width=width, record=True, file=StringIO())
    print_comparison(_summary(folder), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for recipe in RMSE:
        assert any(line.split()[:1] == [recipe] for line in text.splitlines())
    assert "OOD gap to ID (full = 1): " in text
    for word in ("clip oracle", "0.0197", "0.1701", "3,000", "0.047", "×40.85", "p < 0.001", "812"):
        assert word in text, word
    assert "…" not in text


@pytest.mark.parametrize(
    ("names", "gain"),
    [
        ({"test/id": "test/id", "test/ood": None}, "ID gain"),
        ({"test/id": "test/near", "test/ood": "test/far"}, "far gain"),
        ({"test/id": "test/id", "test/ood": "test/ood"}, "OOD gain"),
    ],
)
def test_terminal_shows_gains_and_costs_whatever_the_sets(
    folder: Path, names: dict[str, str | None], gain: str
) -> None:
    summary = _summary(folder)
    for key in ("rows", "gains", "limit_distances", "reference_lines"):
        named = [{**row, "subset": names.get(row["subset"], row["subset"])} for row in summary[key]]
        summary[key] = [row for row in named if row["subset"]]
    for row in summary["rows"]:
        row["seconds"] = 0.1 if row["recipe"] == "full" else row["seconds"]
    console = Console(width=200, record=True, file=StringIO())
    print_comparison(summary, console)
    text = console.export_text()
    assert gain in text
    assert ("ID gain" in text) == (gain == "ID gain")
    for words in ("[interval]", "3,000", "812 s", "0.10 s", "+"):
        assert words in text, words


def test_the_time_of_a_short_run_is_a_plain_number() -> None:
    for seconds, shown in ((0.1, "0.10"), (812.4, "812")):
        metrics = {"seconds": seconds, "property_steps": 7}
        (row,) = runs_table([Run("full", 0, Path("run"), metrics)]).rows
        assert [cell.text for cell in row][2:6] == ["7", "—", "—", shown]


def test_terminal_prints_hostile_names_as_they_are(folder: Path) -> None:
    summary = _summary(folder)
    for row in summary["rows"]:
        row["recipe"] = "[red]x[/red]" if row["recipe"] == "mft" else row["recipe"]
    console = Console(width=120, record=True, file=StringIO())
    print_comparison(summary, console)
    assert "[red]x[/red]" in console.export_text()


def test_two_targets_keep_their_numbers_apart(folder: Path) -> None:
    summary = _summary(folder)
    for key in ("rows", "gains", "limit_distances", "reference_lines"):
        other = [{**entry, "target": "homo"} for entry in summary[key]]
        for entry in other:
            if "value" in entry:
                entry["value"] *= 1.234
        summary[key] += other
    (folder / "summary.json").write_text(json.dumps(summary))
    page = _page(folder)
    shown = {value for value, _ in page.data}
    assert {row["value"] for row in summary["rows"]} <= shown
    text = " ".join(page.text)
    assert "predictions.parquet has no rows for homo" in text
    # A range that no target is named for must not be shaded for either of them.
    assert text.count("Range of the training labels: not available") == 2


def test_elements_that_tell_a_test_set_are_listed() -> None:
    iron = {"element": "Fe", "share": 1.0, "train_share": 0.031}
    others = [{"element": f"X{k}", "share": 0.5, "train_share": 0.1} for k in range(9)]
    elements = {"test/id": [], "test/ood": [iron, *others]}
    table = elements_table({"report": {"elements": elements}})
    assert table is not None
    assert [cell.text for cell in table.rows[0]] == ["OOD", "Fe", "100.0", "3.1"]
    assert 3 <= len(table.rows) < 9
    assert elements_table({"report": {"elements": {"test/id": []}}}) is None
    assert elements_table({"report": _split_report()}) is None  # of an earlier version


def test_ranges_of_a_split_are_those_of_the_target_that_it_was_made_on(tmp_path: Path) -> None:
    split = {"sizes": SIZES, "report": _split_report()}

    def shown(asked: str, n_targets: int, **changes: Any) -> bool:
        found = {**split, **changes}
        table = split_table(found, asked, n_targets=n_targets, unit="Ha")
        limits = training_range(found, asked, n_targets=n_targets)
        assert limits in {None, (0.123, 0.366)}
        assert (table.caption == f"Sets of the split, by {asked}") == (limits is not None)
        return limits is not None

    assert shown("gap", 1, target="gap")
    assert shown("gap", 2, target="gap")
    assert not shown("homo", 1, target="gap")
    # Of a summary that does not say it, the only target; never that of a page without targets.
    assert shown("gap", 1)
    assert shown("gap", 1, target=None)
    assert not shown("gap", 2)
    assert not shown("", 0)
    run = write_run(tmp_path, "mft", 0, [f"qm9-{idx}" for idx in range(2 * N)])
    stored = json.loads((run / "split.json").read_text())
    (run / "split.json").write_text(json.dumps({**stored, "parameters": {"target": "homo"}}))
    assert read_comparison(run).summary["split"]["target"] == "homo"
    assert "Range of the training labels: not available" in " ".join(_page(run).text)


def _watched(recipe: str, force_error: float | None, steps: int = 3) -> Run:
    forces = None if force_error is None else {"force_mae": force_error}
    event = {"losses": {"property": 0.3}, "val_rmse": {"gap": 0.1}, "forcefield": forces}
    return Run(recipe, 0, Path(f"{recipe}-s0"), log=[{**event, "step": k} for k in range(steps)])


def _curves(*runs: Run) -> dict[str, Any]:
    row = {"target": "gap", "recipe": "full", "unit": "Ha"}
    comparison = Comparison(Path("c"), {"rows": [row]}, list(runs), "", is_single_run=False)
    return {panel.title: panel for panel in curve_panels(comparison, "gap")}


def test_an_unfinished_recipe_has_one_colour() -> None:
    panels = _curves(_watched("full", 0.2), _watched("lora", None), _watched("wise", 0.1))
    lines = {
        title: {trace.name: trace.line.color for trace in panel.figure.data}
        for title, panel in panels.items()
    }
    assert list(lines["Force error"]) == ["full", "wise"]
    assert lines["Force error"].items() <= lines["Training loss"].items()


def test_rounding_does_not_squeeze_the_force_error() -> None:
    panel = _curves(_watched("full", 0.2), _watched("wise", 3.0), _watched("probe", 8e-9))[
        "Force error"
    ]
    heights = {trace.name: list(trace.y) for trace in panel.figure.data}
    assert heights["full"] == pytest.approx([0.2] * 3)
    assert heights["probe"] == pytest.approx([0.1] * 3)
    assert {trace.name: list(trace.customdata) for trace in panel.figure.data}["probe"] == [0.0] * 3
    assert "Zero is drawn at the bottom of the axis." in panel.caption
    assert "probe 0." in panel.alt
    nothing = _curves(_watched("probe", 8e-9))["Force error"].figure
    assert nothing.layout.yaxis.type is None
    assert list(nothing.data[0].y) == [0.0] * 3


def test_rounding_of_pseudo_labels_counts_as_no_error() -> None:
    """Before training, a model's error on its own labels is rounding: no ratio makes sense."""
    row = {"recipe": "full", "seed": 0, "force_mae_before": 2e-8, "force_mae_after": 3.8}
    summary = {"forgetting": [{**row, "energy_mae_before": 1e-9, "energy_mae_after": 0.4}]}
    found = average_forgetting(summary, "full")
    assert found["force_mae_before"] == 0.0
    assert found["force_mae_after"] == 3.8
    assert found["ratio"] is None


def test_every_dash_of_the_forgetting_table_is_explained(folder: Path) -> None:
    assert "there is none where the error before was zero" in " ".join(_page(folder).text)


def test_what_is_small_beside_the_largest_does_not_stretch_a_column() -> None:
    assert n_decimals([4.968]) == 2
    assert n_decimals([1.6e-8, 4.968]) == n_decimals([0.0338, 4.968]) == 3
    assert n_decimals([0.338, 4.968]) == 3
    assert n_decimals([0.0]) == n_decimals([None, math.nan]) == 2


@pytest.mark.parametrize(
    ("errors", "shown"),
    [
        ([0.712, 0.934, 5000.0], "0.712"),
        ([0.00338, 0.00417, 0.0123, 5e7], "0.00338"),
        ([0.5, 123456.0], "0.50"),
        ([0.000123, 5000.0], "1.23e-04"),
    ],
)
def test_a_diverged_recipe_takes_no_digits_from_the_others(errors: list[float], shown: str) -> None:
    assert format_quantity(errors[0], n_decimals(errors)) == shown


def test_every_seed_lies_on_the_axis() -> None:
    """One seed of several that went wrong lies beyond the interval of their mean."""
    value, low, high = (np.array([number]) for number in (0.14, 0.10, 0.17))
    figure, off_scale = error_bars(
        ["full"],
        value,
        low,
        high,
        seed_values=[[0.10, 0.11, 0.31]],
        reference_lines={"mean predictor": 9.0},
        axis_title="RMSE (eV)",
        colour="#000000",
    )
    assert 0.31 < figure.layout.xaxis.range[1] < 0.4
    assert off_scale == ["mean predictor"]


def test_a_long_legend_leaves_room_for_the_curves() -> None:
    def height(names: list[str]) -> int:
        run = (np.arange(3.0), np.ones(3))
        positions = {name: at for at, name in enumerate(names)}
        return learning_curves(
            {name: [run] for name in names}, positions=positions, axis_title="", log_scale=False
        ).layout.height

    assert height(["full", "mft"]) == 320
    # Two names of this length stand beside each other: eight more rows of some 20 pixels.
    assert height([f"mft-sampled-at-{n}" for n in range(17)]) >= 320 + 8 * 20
