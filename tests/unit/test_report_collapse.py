"""The collapse sections of the report: numbers, gaps, the explorer's data, damaged files."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import itertools
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ase.data import atomic_numbers
from rich.console import Console

from tether.cli.collapse_tables import print_collapse
from tether.collapse.pooled import pool
from tether.report import explorer as explorer_module
from tether.report.build import build_report
from tether.report.collapse import collapse_context
from tether.report.collapse_panels import distance_panel, forest_panel, live_panels
from tether.report.collapse_points import RunPoints, Structures, read_points
from tether.report.collapse_predicts import (
    foretelling,
    last_layer_predicts,
    oriented,
    predicts_table,
)
from tether.report.collapse_read import Collapse, layers_of, pool_runs, read_collapse
from tether.report.collapse_tables import class_table, measure_tables, verdict_on_null
from tether.report.explorer import element_colours, explorer, face_on, pack, quantise
from tether.report.read import Comparison, read_comparison


def _load(name: str) -> ModuleType:
    """A module beside this one: test folders are no packages."""
    spec = importlib.util.spec_from_file_location(
        f"beside_{name}", Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SYNTHETIC = _load("synthetic_collapse")
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with collapse files; read-only."""
    folder = tmp_path_factory.mktemp("comparison")
    _load("test_report").write_comparison(folder)
    SYNTHETIC.add_collapse(folder, seeds=SEEDS)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    copy = tmp_path / "comparison"
    shutil.copytree(made, copy)
    return copy


@pytest.fixture(scope="module")
def page(made: Path) -> str:
    return build_report(made).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def comparison(made: Path) -> Comparison:
    return read_comparison(made)


def _points(comparison: Comparison) -> dict[int, RunPoints]:
    return {
        at: read_points(run.folder / "collapse")
        for at, run in enumerate(comparison.runs)
        if (run.folder / "collapse").is_dir()
    }


def _payload(page: str) -> dict[str, Any]:
    found = re.search(r'id="explorer-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    payload: dict[str, Any] = json.loads(found[1])
    return payload


def _unpack(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


def _write_measures(folder: Path, run: str, **changes: Any) -> None:
    path = folder / "runs" / run / "collapse" / "measures.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---- the page ----------------------------------------------------------------------------------


def test_every_measure_is_on_the_page(page: str) -> None:
    shown = [float(value) for value in re.findall(r'<data value="([^"]+)"', page)]
    for recipe in SYNTHETIC.COLLAPSE:
        entries = [SYNTHETIC.measures(recipe, seed)["atoms"] for seed in SEEDS]
        for pair in zip(*entries, strict=True):
            values = [entry["value"] for entry in pair]
            if None not in values:
                mean = float(np.mean(values))
                assert any(math.isclose(mean, value, abs_tol=1e-12) for value in shown), pair[0]
    assert not any(math.isclose(0.123456, value) for value in shown)


def test_page_stays_small_and_closed(page: str) -> None:
    assert 1e6 < len(page.encode()) < 10e6
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe-eval" not in policy[1]
    assert "connect-src" not in policy[1]


def test_the_licence_of_the_molecule_viewer_is_in_the_page(page: str) -> None:
    start = page.index("Redistributions in binary form must reproduce the above copyright")
    assert page.index("University of Pittsburgh") < start < page.index("createViewer")


def test_tables_and_parts_of_the_explorer_are_named(page: str) -> None:
    body = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert body.count("<table") == body.count("<caption")
    ids = re.findall(r'\bid="([^"]+)"', body)
    assert len(ids) == len(set(ids))
    for name in re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', body):
        assert name in ids
    levels = [int(level) for level in re.findall(r"<h([1-6])", body)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for element in ("before", "after", "far", "molecule"):
        tag = re.search(rf'<div[^>]*id="explorer-{element}"[^>]*>', body)
        assert tag is not None
        assert 'tabindex="0"' in tag[0]
        assert "aria-label" in tag[0]
    assert re.search(r'role="status" aria-live="polite" id="explorer-live"', body)


def test_folder_without_collapse_says_what_to_run(folder: Path) -> None:
    for path in (folder / "runs").glob("*/collapse"):
        shutil.rmtree(path)
    (folder / "collapse.json").unlink()
    folder = folder.rename(folder.with_name("my comparison"))
    text = build_report(folder).read_text(encoding="utf-8")
    assert f"not available: run `tether collapse '{folder}'`" in html.unescape(text)
    # Neither the data nor the viewer is carried for nothing.
    assert "explorer-data" not in text
    assert "University of Pittsburgh" not in text


def test_a_single_run_has_measures_but_no_prediction(made: Path) -> None:
    context = collapse_context(read_comparison(made / "runs" / "full-s0"))
    assert context["missing"] == ""
    assert context["predicts_missing"] == "one run cannot show it"
    assert context["explorer"].payload["runs"][0]["recipe"] == "full"


def test_classes_that_were_not_sampled_are_counted(folder: Path) -> None:
    run = folder / "runs" / "full-s0"
    before = collapse_context(read_comparison(run))["intro"]
    assert not any("not sampled" in sentence for sentence in before)
    _write_measures(folder, "full-s0", left_out={"n_classes": 7, "share_of_atoms": 0.254})
    (sentence,) = set(collapse_context(read_comparison(run))["intro"]) - set(before)
    assert sentence == "7 rarer classes, with 25 % of the atoms, were not sampled."


def test_hostile_names_stay_text(folder: Path) -> None:
    attack = "</script><img src=x onerror=alert(1)>"
    run = "full-s0"
    path = folder / "runs" / run / "collapse"
    for name in ("structures.parquet", "atoms.parquet", "edges.parquet"):
        table = pq.read_table(path / name)
        names = [attack + value for value in table["structure"].to_pylist()]
        at = table.column_names.index("structure")
        pq.write_table(table.set_column(at, "structure", pa.array(names)), path / name)
    measures = SYNTHETIC.measures("full", 0)
    for entry in measures["atoms"]:
        entry["label"] = entry["source"] = attack
    _write_measures(folder, run, **measures)
    text = build_report(folder).read_text(encoding="utf-8")
    assert "<img" not in text.partition("<script>")[0]
    ids = _payload(text)["structures"]["ids"]
    assert any(name.startswith(attack) for name in ids)


# ---- tables and sentences ----------------------------------------------------------------------


def test_not_computable_is_never_a_number(comparison: Comparison) -> None:
    tables = measure_tables(read_collapse(comparison).known, "atoms")
    rows = {row[0].text: row for table in tables for row in table.rows}
    after = rows["Intrinsic dimension"][-len(SYNTHETIC.COLLAPSE) :]
    assert {cell.text for cell in after} == {"not computable"}
    assert {cell.details for cell in after} == {("fewer than 10 points that differ",)}
    assert {cell.value for cell in after} == {None}
    assert rows["Effective rank"][-1].value is not None


def test_collapse_is_marked_and_zero_drift_is_not(comparison: Comparison) -> None:
    tables = measure_tables(read_collapse(comparison).known, "atoms")
    cells = {
        (row[0].text, recipe): cell
        for table in tables
        for row in table.rows
        for recipe, cell in zip(
            (column.label for column in table.columns[-len(SYNTHETIC.COLLAPSE) :]),
            row[-len(SYNTHETIC.COLLAPSE) :],
            strict=True,
        )
    }
    assert cells["1-Wasserstein distance", "probe"].value == 0.0
    assert cells["1-Wasserstein distance", "probe"].details[-1] == "closer than null"
    assert cells["1-Wasserstein distance", "probe"].tone == ""
    for name in ("Effective rank", "Davies–Bouldin index", "Debiased CKA"):
        assert cells[name, "scratch"].tone == "worse", name
        assert cells[name, "probe"].tone == "", name


@pytest.mark.parametrize(
    ("value", "direction", "family", "words"),
    [
        (0.5, "lower", "structure", "worse than null"),
        (0.5, "higher", "structure", "better than null"),
        (1.5, "higher", "structure", "worse than null"),
        (1.5, "lower", "drift", "closer than null"),
        (0.5, "lower", "drift", "beyond null"),
        (1.0, "lower", "drift", "within null"),
        (None, "lower", "drift", ""),
    ],
)
def test_side_of_the_null(value: float | None, direction: str, family: str, words: str) -> None:
    entry = {"collapse_means": direction, "family": family}
    assert verdict_on_null(value, 0.9, 1.1, entry) == words
    assert verdict_on_null(value, None, None, entry) == ""


def test_pooling_takes_the_widest_interval() -> None:
    first = {"value": 1.0, "low": 0.5, "high": 1.2, "before": 4.0, "null_low": 3.0}
    second = {"value": 3.0, "low": 2.5, "high": 3.7, "null_low": 3.5, "null_high": 4.5}
    found = pool([first, None, second])
    assert (found.value, found.low, found.high, found.seeds) == (2.0, 0.5, 3.7, (1.0, 3.0))
    assert (found.before, found.null_low, found.null_high) == (4.0, 3.5, 4.5)
    nothing = pool([{"value": None, "missing": "NaN features"}, None])
    assert (nothing.value, nothing.missing) == (None, "NaN features")
    assert pool([None]).missing == "not measured"


def test_pooling_over_a_recipe_and_over_all(comparison: Comparison) -> None:
    runs = read_collapse(comparison).known
    own = pool_runs(runs, "atoms", "cka", recipe="full")
    every = pool_runs(runs, "atoms", "cka")
    assert len(own.seeds) == sum(run.run.recipe == "full" for run in runs) < len(every.seeds)
    assert own.value != every.value
    assert pool_runs(runs, "atoms", "cka", 0).value != every.value  # another layer


def test_a_number_that_is_none_is_not_pooled(comparison: Comparison) -> None:
    path = comparison.runs[0].folder / "collapse" / "measures.json"
    before = path.read_text()
    content = json.loads(before)
    for entry in content["atoms"]:
        entry["value"] = "much"
    path.write_text(json.dumps(content))
    try:
        run = read_collapse(comparison).runs[0]
    finally:
        path.write_text(before)
    assert not run.problem
    assert pool([run.entry("atoms", "cka")]).value is None


def test_the_last_layer_comes_after_the_inner_ones(comparison: Comparison) -> None:
    runs = read_collapse(comparison).known
    assert layers_of(runs, "atoms", "cka") == [(0, 0), (1, 1), (2, 2), (3, None)]
    assert layers_of(runs, "atoms", "wasserstein1") == [(3, None)]


def test_classes_keep_their_numbers(comparison: Comparison) -> None:
    table = class_table(read_collapse(comparison).known)
    last = table.rows[-1]
    assert last[0].text == "N1"
    scratch = last[3 + list(SYNTHETIC.COLLAPSE).index("scratch")]
    probe = last[3 + list(SYNTHETIC.COLLAPSE).index("probe")]
    assert scratch.value == pytest.approx(0.944 - 0.27 * 0.75)
    assert scratch.details[0].startswith("−0.20")
    assert scratch.details[1] == "moved 1.50"
    assert probe.details == ("unchanged", "moved 0.00")


def test_correlations_are_turned_towards_collapse(comparison: Comparison) -> None:
    collapse = read_collapse(comparison)
    raw = {entry["measure"]: entry["rho"] for entry in collapse.predicts}
    turned = {entry["measure"]: oriented(collapse, entry) for entry in collapse.predicts}
    assert raw["cka"] < 0 < raw["wasserstein1"]
    assert turned["cka"][0] == -raw["cka"]
    assert turned["wasserstein1"][0] == raw["wasserstein1"]
    for rho, low, high in turned.values():
        assert rho is None or low is None or high is None or low <= rho <= high


def test_terminal_and_page_turn_correlations_alike(comparison: Comparison) -> None:
    collapse = read_collapse(comparison)
    entry = next(one for one in collapse.predicts if one["measure"] == "cka")
    entry = {**entry, "label": "CKA", "collapse_means": "lower"}
    content = {"target": "gap", "subset": "", "runs": [], "pooled": [], "predicts": [entry]}
    console = Console(file=io.StringIO(), width=140)
    print_collapse(content, console)
    (row,) = predicts_table(replace(collapse, predicts=[entry])).rows
    assert row[2].text == f"{-entry['rho']:.2f}"
    (line,) = (x for x in console.file.getvalue().splitlines() if row[0].text in x)
    assert (
        line.removeprefix(f"  {row[0].text}").split()
        == " ".join(cell.text for cell in row[1:]).split()
    )


def test_the_answer_says_what_the_intervals_say(comparison: Comparison) -> None:
    collapse = read_collapse(comparison)
    answer = foretelling(collapse)
    assert "1-Wasserstein distance (atoms) foretells the OOD error best: ρ = 0.85" in answer
    assert "picked as the best of 6" in answer
    assert "the ID error itself: ρ = 0.85" in answer
    unclear = [{**entry, "low": -1.0, "high": 1.0} for entry in collapse.predicts]
    assert foretelling(replace(collapse, predicts=unclear)).startswith("No measure that needs no")

    def said(*found: tuple[float, float | None, float | None]) -> str:
        names = ("rho", "low", "high")
        own = {"points": "atoms", "layer": None, "collapse_means": "higher", "n": 9}
        predicts = [
            {**own, "measure": f"m{at}", **dict(zip(names, numbers, strict=True))}
            for at, numbers in enumerate(found)
        ]
        return foretelling(Collapse(runs=[], predicts=predicts))

    below = said((-0.9, -0.99, -0.6), (0.1, -0.5, 0.6))
    assert "of 2, none has an interval above zero (1 below it). The highest is m1" in below
    assert said((0.9, None, None)).endswith("m0 (atoms): ρ = 0.90, no interval over 9 runs.")
    # The strongest may be known from few runs only.
    assert "m1 (atoms) foretells the OOD error best: ρ = 0.75, interval [0.40, 0.90]" in said(
        (0.8, -0.1, 0.95), (0.75, 0.4, 0.9)
    )
    none = [{**entry, "rho": None} for entry in collapse.predicts]
    assert "could be correlated" in foretelling(replace(collapse, predicts=none))
    assert forest_panel(replace(collapse, predicts=none)).figure is None
    assert foretelling(replace(collapse, predicts=[])) == ""


def test_the_forest_has_the_last_layer_only() -> None:
    entry = {"measure": "cka", "points": "atoms", "rho": 0.5, "low": 0.1, "high": 0.8}
    inner = {"measure": "rank", "points": "atoms", "rho": 0.1, "low": 0.0, "high": 0.2}
    entries = [{**entry, "layer": layer} for layer in (0, 1, None)]
    entries += [{**inner, "layer": layer} for layer in (0, 1)]
    kept = last_layer_predicts(Collapse([], entries))
    assert [(row["measure"], row["layer"]) for row in kept] == [("cka", None), ("rank", 1)]


# ---- panels ------------------------------------------------------------------------------------


def test_watched_measures_are_drawn_beside_the_losses(comparison: Comparison, page: str) -> None:
    panels = live_panels(comparison)
    assert [panel.title for panel in panels] == [
        "Effective rank",
        "Similarity to the pretrained features",
    ]
    assert page.index('id="curves"') < page.index("Collapse while training")
    assert page.index("Collapse while training") < page.index('id="forgetting"')
    unwatched = [
        replace(run, log=[{**event, "collapse": None} for event in run.log])
        for run in comparison.runs
    ]
    assert live_panels(replace(comparison, runs=unwatched)) == []


def test_error_by_distance_is_the_mean_of_equal_bins(comparison: Comparison) -> None:
    n = 80
    structures = Structures(
        ids=[str(row) for row in range(n)],
        numbers=[np.array([1])] * n,
        positions=[np.zeros((1, 3))] * n,
        subset=["test/id"] * n,
        true={"gap": np.zeros(n)},
        pred={"gap": np.arange(n, dtype=float)},
        distance=np.arange(n, dtype=float),
    )
    # The same distances in another order give the same line.
    back = np.arange(n)[::-1]
    shuffled = replace(structures, pred={"gap": back * 1.0}, distance=back * 1.0)
    lines = []
    for found in (structures, shuffled):
        figure = distance_panel(comparison, {0: RunPoints(found)}, "gap").figure
        assert figure is not None
        lines.append(np.array([figure.data[0].x, figure.data[0].y]))
    panel = distance_panel(comparison, {0: RunPoints(structures)}, "gap")
    assert panel.caption.startswith("Mean absolute error in 8 bins of")
    half = replace(structures, distance=np.where(np.arange(n) < 20, structures.distance, np.nan))
    panel = distance_panel(comparison, {0: RunPoints(half)}, "gap")
    assert f"in {len(panel.figure.data[0].x)} bins" in panel.caption
    assert len(panel.figure.data[0].x) < 8
    expected = 10 * np.arange(8) + 4.5
    np.testing.assert_allclose(lines[0], [expected, expected])
    np.testing.assert_allclose(lines[1], lines[0])
    nothing = distance_panel(comparison, {0: RunPoints(structures)}, "homo")
    assert nothing.figure is None
    assert nothing.missing == "no run has distances and predictions"


def without_map(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The table with places that are no numbers in some rows, as where nothing was embedded."""
    for name in ("x_before", "y_before", "x_after", "y_after"):
        values = np.where(rows, np.nan, table[name].to_numpy())
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return table


def test_a_layer_without_a_map_is_left_out(folder: Path) -> None:
    path = folder / "runs" / "full-s0" / "collapse" / "atoms.parquet"
    table = pq.read_table(path)
    pq.write_table(without_map(table, table["layer"].to_numpy() == 1), path)
    found = read_points(path.parent)
    assert found.problems == {}
    assert found.atoms is not None
    assert list(found.atoms.layers) == [0, 2, 3]
    comparison = read_comparison(folder)
    payload = explorer(comparison, read_collapse(comparison), _points(comparison)).payload
    json.dumps(payload, allow_nan=False)


# ---- the explorer's data -----------------------------------------------------------------------


def test_payload_holds_what_the_files_hold(comparison: Comparison, page: str) -> None:
    payload = _payload(page)
    assert len(payload["runs"]) == len(SYNTHETIC.COLLAPSE) * len(SEEDS)
    run = next(row for row in payload["runs"] if (row["recipe"], row["seed"]) == ("mft", 1))
    folder = next(r.folder for r in comparison.runs if r.folder.name == "mft-s1") / "collapse"
    atoms = pq.read_table(folder / "atoms.parquet").to_pylist()
    molecules = {
        row["structure"]: row for row in pq.read_table(folder / "structures.parquet").to_pylist()
    }
    view, structures = run["views"]["atoms"], payload["structures"]
    sizes = _unpack(structures["sizes"], "<u2")
    starts = [0, *np.cumsum(sizes).tolist()]
    numbers = _unpack(structures["numbers"], "u1")
    xyz = _unpack(structures["positions"], "<i2").reshape(-1, 3) * structures["step"]
    rows, atom = _unpack(view["structure"], "<u4"), _unpack(view["atom"], "<u2")
    pred = dict(zip(_unpack(run["rows"], "<u4"), _unpack(run["pred"]["gap"], "<f4"), strict=True))
    last = [row for row in atoms if row["layer"] == SYNTHETIC.N_LAYERS - 1]
    assert len(last) == len(rows)
    for at in range(0, len(last), 37):
        row, name = int(rows[at]), structures["ids"][rows[at]]
        assert name == last[at]["structure"]
        assert view["names"][_unpack(view["class"], "<u2")[at]] == last[at]["class"]
        assert numbers[starts[row] + int(atom[at])] == last[at]["number"]
        assert pred[row] == pytest.approx(molecules[name]["pred_gap"])
        # Distances between atoms survive the turn and the rounding to 0.01 Å.
        own = xyz[starts[row] : starts[row + 1]]
        true = np.reshape(molecules[name]["positions"], (-1, 3))
        found = np.linalg.norm(own - own[0], axis=1)
        np.testing.assert_allclose(found, np.linalg.norm(true - true[0], axis=1), atol=0.02)


def test_every_element_has_its_own_colour() -> None:
    """Jmol's: an element is not that of its first letter."""
    for one, other in (("Cl", "C"), ("Si", "S"), ("Br", "B"), ("Na", "N"), ("Pb", "P")):
        pairs = [element_colours(atomic_numbers[symbol]) for symbol in (one, other)]
        assert not set(pairs[0]) & set(pairs[1])
    # Hydrogen, which is white there, is seen on a white page and nitrogen on a dark one.
    assert element_colours(1) == ("#b8b8b8", "#ffffff")
    assert element_colours(7)[1] == "#647cfa"


def test_molecules_are_there_once(page: str) -> None:
    ids = _payload(page)["structures"]["ids"]
    assert len(ids) == len(set(ids)) > 50


def test_quantised_maps_keep_distances_and_share_a_scale() -> None:
    places = np.random.default_rng(0).normal(0, [3.0, 1.0, 3.0, 1.0], (200, 4)) + 7
    found = quantise(places).astype(float) / 65535
    assert found.min() == 0.0
    assert found.max() == 1.0
    for ends in ((0, 1), (2, 3)):
        true = np.linalg.norm(places[1:, ends] - places[0, ends], axis=1)
        shown = np.linalg.norm(found[1:, ends] - found[0, ends], axis=1)
        np.testing.assert_allclose(shown / true, shown[0] / true[0], rtol=2e-3)
    unmoved = np.tile(places[:, :2], 2)
    np.testing.assert_array_equal(quantise(unmoved)[:, :2], quantise(unmoved)[:, 2:])
    np.testing.assert_array_equal(quantise(np.ones((3, 4))), np.full((3, 4), 32768))


def test_molecules_are_turned_and_never_mirrored() -> None:
    positions = np.random.default_rng(1).normal(0, [1.0, 2.0, 3.0], (6, 3))
    turned = face_on(positions)

    def handedness(points: np.ndarray) -> float:
        return float(np.sign(np.linalg.det(points[1:4] - points[0])))

    assert handedness(turned) == handedness(positions)
    assert handedness(positions * [1, 1, -1]) != handedness(positions)
    spread = turned.std(axis=0)
    assert spread[0] > spread[1] > spread[2]
    assert face_on(np.array([[1.0, 2.0, 3.0]])).tolist() == [[0.0, 0.0, 0.0]]


def test_pack_is_little_endian() -> None:
    values = np.array([1.5, -2.0, np.nan])
    np.testing.assert_array_equal(_unpack(pack(values, np.float32), "<f4"), values)
    assert base64.b64decode(pack(np.array([1]), ">u2")) == b"\x01\x00"


def test_a_large_comparison_is_thinned_and_says_so(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    collapse, points = read_collapse(comparison), _points(comparison)
    whole = explorer(comparison, collapse, points)
    assert whole.notes == []
    monkeypatch.setattr(explorer_module, "MAX_BYTES", 60_000)
    few = explorer(comparison, collapse, points)
    assert whole.payload is not None
    assert few.payload is not None
    assert "Only the first seed of each recipe is here, 5 runs." in few.notes
    assert any("% of the sampled points are here" in note for note in few.notes)
    numbers = [_unpack(run["views"]["atoms"]["number"], "<u4") for run in few.payload["runs"]]
    assert all(np.array_equal(numbers[0], other) for other in numbers)
    places = sum(
        len(layer["xy"])
        for run in few.payload["runs"]
        for view in run["views"].values()
        for layer in view["layers"]
    )
    assert places < 60_000 < len(json.dumps(whole.payload))


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("structures.parquet", None, "structures.parquet is not there"),
        ("atoms.parquet", "text", "atoms.parquet cannot be read"),
        ("atoms.parquet", "drop x_after", "atoms.parquet has no column x_after"),
        ("atoms.parquet", "cut", "atoms.parquet does not have the same points in every layer"),
        ("atoms.parquet", "empty", "atoms.parquet has no rows"),
        ("atoms.parquet", "nan", "atoms.parquet has a place that is no number"),
        ("edges.parquet", "no map", "edges.parquet has no map"),
        ("edges.parquet", "atom", "edges.parquet names an atom that its structure does not have"),
        ("atoms.parquet", "unknown", "has a point of nobody, which structures.parquet"),
        ("structures.parquet", "twice", "structures.parquet names a structure twice"),
        ("structures.parquet", "short", r"has \d+ coordinates for \d+ atoms of qm9-000000"),
    ],
)
def test_damaged_points_have_a_reason(
    folder: Path, file: str, change: str | None, reason: str
) -> None:
    own = folder / "runs" / "full-s0" / "collapse"
    assert read_points(own).problems == {}
    path = own / file
    table = pq.read_table(path)

    def replaced(name: str, values: list[Any]) -> pa.Table:
        at = table.column_names.index(name)
        return table.set_column(at, name, pa.array(values, table.schema.field(name).type))

    if change is None:
        path.unlink()
    elif change == "text":
        path.write_text("not parquet")
    else:
        names = table["structure"].to_pylist()
        changed = {
            "drop x_after": lambda: table.drop_columns(["x_after"]),
            "cut": lambda: table.slice(1),
            "empty": lambda: table.slice(0, 0),
            "nan": lambda: replaced("x_after", [math.nan] * table.num_rows),
            "no map": lambda: without_map(table, np.ones(table.num_rows, bool)),
            "atom": lambda: replaced("atom_idx_j", [99] * table.num_rows),
            "unknown": lambda: replaced("structure", ["nobody"] * table.num_rows),
            "twice": lambda: replaced("structure", [names[1], *names[1:]]),
            "short": lambda: replaced("positions", [[0.0], *table["positions"].to_pylist()[1:]]),
        }[change]()
        pq.write_table(changed, path)
    found = read_points(own)
    assert re.search(reason, found.problems[file])
    # The other file of points is still there, unless nothing can be without structures.
    others = {"atoms.parquet": found.edges, "edges.parquet": found.atoms}
    assert (others[file] is not None) if file in others else (found.atoms is None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "collapse/measures.json cannot be read"),
        ('{"format": 1}', "`format` of collapse/measures.json is 1, not 2"),
    ],
)
def test_damaged_measures_have_a_reason(folder: Path, text: str, reason: str) -> None:
    for path in (folder / "runs").glob("*/collapse/measures.json"):
        path.write_text(text)
    (folder / "collapse.json").write_text("[]")
    found = read_collapse(read_comparison(folder))
    assert reason in found.missing
    assert found.known == []
    assert reason in build_report(folder).read_text(encoding="utf-8")


def test_entries_that_are_no_measurements_are_passed_over(folder: Path) -> None:
    good = SYNTHETIC.measures("full", 0)["atoms"][0]
    odd = [good, 3, {"name": "x"}, {**good, "name": 7}, {**good, "layer": "last"}]
    _write_measures(folder, "full-s0", atoms=odd, classes=[{"n": 3}], edges=None)
    found = read_collapse(read_comparison(folder))
    run = next(run for run in found.runs if run.run.folder.name == "full-s0")
    assert run.entries("atoms") == [good]
    assert run.entries("edges") == []
    assert run.measures["classes"] == []
