"""The results page of a suite: its words, numbers, gaps, and names that try to break out."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tether.cli.bench_tables import print_results
from tether.errors import TetherError
from tether.metrics.efficiency import Reached, size_reaching
from tether.metrics.tasks import alike
from tether.report.format import MISSING
from tether.report.suite import build_suite_report, suite_context
from tether.report.suite_curves import efficiency_answers, reach_table
from tether.report.suite_figures import Ratios, ratio_rows
from tether.report.suite_made import outside_table
from tether.report.suite_panels import gain_panels, rank_panels, trade_off_panels
from tether.report.suite_read import read_results
from tether.report.suite_tables import error_table, group_tables, over_tasks_table
from tether.report.suite_verdict import progress_words, suite_remarks, suite_verdicts


def _load(name: str) -> ModuleType:
    """A module beside this one: test folders are no packages."""
    spec = importlib.util.spec_from_file_location(
        f"suite_{name}", Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MADE = _load("synthetic_suite")
OPTIONAL = {"published_rows": []}


def _errors(mft_ood: float, mft_id: float, n_tasks: int = 8) -> dict[str, Any]:
    """Tasks of different scale on which mft's errors are these shares of full's."""
    scatter = np.linspace(-0.004, 0.004, n_tasks)
    return {
        f"t{at}": {
            "scratch": (1.1 * scale, 0.6 * scale),
            "full": (scale, 0.5 * scale),
            "mft": ((mft_ood + off) * scale, 0.5 * (mft_id + off) * scale),
        }
        for at, (scale, off) in enumerate(zip(10.0 ** np.arange(n_tasks), scatter, strict=True))
    }


def _results(errors: dict[str, Any], **changes: Any) -> dict[str, Any]:
    results: dict[str, Any] = {**OPTIONAL, **MADE.results_of(errors), **changes}
    return results


def _write(folder: Path, results: dict[str, Any]) -> Path:
    (folder / "results.json").write_text(json.dumps(results))
    return folder


class _Text(HTMLParser):
    """Text outside of scripts, exact numbers, tags and ids."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.data: list[float] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self._hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self._hidden = tag in {"script", "style"}
        if tag == "data":
            self.data.append(float(found["value"] or "nan"))
        if found.get("id"):
            self.ids.append(str(found["id"]))

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden and data.strip():
            self.words.append(data.strip())


def _page(folder: Path, results: dict[str, Any]) -> _Text:
    return _Text(build_suite_report(_write(folder, results)).read_text(encoding="utf-8"))


# ---- words ---------------------------------------------------------------------------------------


def test_a_winner_is_called_one_and_its_loss_is_named() -> None:
    (sentence,) = suite_verdicts(_results(_errors(0.88, 1.02)))
    assert sentence.startswith(
        "mft, mean over 8 tasks: OOD RMSE 12.0 % below full (95 % interval ["
    )
    assert (
        "p = 0.016 after Holm's correction), better on 8 of 8; ID RMSE 2.0 % above full" in sentence
    )
    assert sentence.endswith("better on 0 of 8, worse on t0, t1, t2, t3, t4, t5, t6, t7.")
    assert "not distinguishable" not in sentence


def test_a_loser_is_called_one() -> None:
    (sentence,) = suite_verdicts(_results(_errors(1.1, 1.0)))
    assert "OOD RMSE 10.0 % above full (95 % interval [9" in sentence
    assert "below full" not in sentence.partition(";")[0]


def test_a_tie_is_not_a_gain() -> None:
    (sentence,) = suite_verdicts(_results(_errors(1.0, 1.0)))
    assert sentence.count("not distinguishable from no difference") == 2


def test_too_few_tasks_for_any_p_are_said() -> None:
    few = _results(_errors(0.88, 1.0, n_tasks=5))
    assert "not significant" in suite_verdicts(few)[0]
    assert any("fewer than six" in remark for remark in suite_remarks(few))
    many = _results(_errors(0.88, 1.0, n_tasks=6))
    assert not any("fewer than six" in remark for remark in suite_remarks(many))


def test_the_note_names_the_families_of_the_correction() -> None:
    (section,) = (s for s in suite_context(_results(_errors(0.88, 1.0)))["sections"]
                  if s.id == "over-tasks")  # fmt: skip
    note = section.parts[-1].content
    assert "among the recipes of the column that are to run on equally many tasks" in note


def test_a_mean_over_few_tasks_has_no_interval() -> None:
    for n_tasks, certain in ((2, False), (8, True)):
        results = _results(_errors(0.88, 1.0, n_tasks))
        (_, *mft) = over_tasks_table(results, "full").rows[-1]
        assert any("[" in detail for cell in mft for detail in cell.details) is certain
        assert [cell.text != MISSING for cell in mft[3:5]] == [certain, certain]
        assert ("interval [" in suite_verdicts(results)[0]) is certain
        assert ("Large: mean" in trade_off_panels(results, "full")[0].caption) is certain


def test_one_task_speaks_for_itself() -> None:
    (sentence,) = suite_verdicts(_results(_errors(0.88, 1.0, n_tasks=1)))
    assert sentence.startswith("t0: mft: OOD RMSE 12.4 % below full")


def test_the_clip_oracle_tempers() -> None:
    results = _results(_errors(0.88, 1.0))
    assert suite_remarks(results) == ["The best recipe beats the clip oracle OOD on 8 of 8 tasks."]
    line = next(r for r in results["tasks"][3]["reference_lines"] if r["name"] == "clip oracle")
    line["value"] = 1e-9
    (remark,) = suite_remarks(results)
    assert remark.endswith("on 7 of 8 tasks; no recipe extrapolates on t3.")


def test_progress_names_what_is_to_do() -> None:
    results = _results(_errors(0.9, 1.0))
    assert progress_words(results) == "All 72 runs are done."
    results["tasks"][1]["runs"]["mft-s2"] = False
    assert progress_words(results) == "71 of 72 runs are done; to do: t1/mft-s2."


# ---- data efficiency -----------------------------------------------------------------------------


def test_crossings_of_power_laws_are_exact() -> None:
    sizes = np.array([250, 500, 1000, 2000, 5000])
    errors = 3.0 * sizes**-0.25
    for size in (300.0, 777.0, 4000.0):
        assert size_reaching(sizes[::-1], errors[::-1], 3.0 * size**-0.25).size == pytest.approx(
            size
        )
    assert size_reaching(sizes, errors, 2 * errors[0]) == Reached(pytest.approx(250), at_most=True)
    assert size_reaching(sizes, errors, 0.9 * errors[-1]) == Reached(None)


def test_a_curve_that_rises_again_has_not_reached() -> None:
    assert size_reaching([100, 200, 400], [1.0, 0.4, 0.8], 0.5).size is None
    again = size_reaching([100, 200, 400, 800], [1.0, 0.4, 0.8, 0.2], 0.4).size
    assert again == pytest.approx(400 * 2**0.5)


@pytest.mark.parametrize(
    ("sizes", "errors"), [([], []), ([1, 1], [2, 3]), ([0, 1], [2, 3]), ([1, 2], [1, -1])]
)
def test_impossible_curves_are_refused(sizes: list[float], errors: list[float]) -> None:
    with pytest.raises(TetherError, match="sizes"):
        size_reaching(sizes, errors, 0.5)


def _curves() -> dict[str, Any]:
    sizes = (250, 500, 1000, 2000)
    errors = {
        n: {
            "scratch": (n**-0.25, 0.5 * n**-0.25),
            "full": (0.9 * n**-0.25, 0.4 * n**-0.25),
            "mft": (2**-0.25 * n**-0.25, 0.5 * n**-0.25),
        }
        for n in sizes
    }
    return {**OPTIONAL, **MADE.curves_over("size", errors)}


def test_efficiency_in_words_and_in_the_table() -> None:
    results = _curves()
    answers = efficiency_answers(results)
    # An error that is 2**(-1/4) of scratch's at each size is reached with half the data.
    assert answers[0].startswith("gap: mft reaches the OOD RMSE that scratch has at size 2,000")
    assert answers[0].endswith("at size 1,000, 2.0 times fewer.")
    assert "full has at size 2,000" in answers[3]
    assert answers[3].endswith("is not reached within the sizes run.")
    table = reach_table(results, "gap", "test/ood")
    row = next(row for row in table.rows if row[0].text == "mft")
    assert [column.label.partition(":")[0] for column in table.columns[1:]] == [
        "scratch at 2,000", "full at 2,000", "mft at 2,000", "clip oracle",
    ]  # fmt: skip
    assert row[1].value == pytest.approx(1000)
    assert row[3].text == ""
    assert suite_verdicts(results) == answers
    context = suite_context(results)
    shown = [*context["verdicts"], *(part.content for part in context["sections"][0].parts)]
    assert [shown.count(answer) for answer in answers] == [1] * len(answers)  # not said twice


def test_sizes_that_are_fractions_keep_their_digits() -> None:
    results = _curves()
    for row in results["curves"]:
        row["x"] /= 1000
    for task, x in zip(results["tasks"], (0.25, 0.5, 1, 2), strict=True):
        task["values"]["size"] = x
    answers = efficiency_answers(results)
    assert "scratch has at size 2.0 " in answers[0]
    assert answers[0].endswith("at size 1.00, 2.0 times fewer.")
    row = next(r for r in reach_table(results, "gap", "test/ood").rows if r[0].text == "mft")
    assert [cell.text for cell in row[1:3]] == ["1.00", "1.52"]
    shown = {cell.text for r in reach_table(results, "gap", "test/id").rows for cell in r}
    assert "0" not in shown


# ---- ranks ---------------------------------------------------------------------------------------


def test_bars_join_what_cannot_be_told_apart() -> None:
    assert alike([1.0, 2.0, 3.0], 0.5) == []
    assert alike([1.0, 2.0, 3.0], 1.0) == []  # a difference of exactly the critical one counts
    assert alike([3.0, 1.0, 2.0], 1.5) == [[1, 2], [2, 0]]
    assert alike([1.0, 1.2, 1.4, 5.0], 1.0) == [[0, 1, 2]]
    panels = rank_panels(_results(_errors(0.88, 1.02)))
    assert [panel.title for panel in panels] == ["Ranks by OOD RMSE", "Ranks by ID RMSE"]
    bars = [
        trace for trace in panels[0].figure.data if trace.meta == "ink" and trace.mode == "lines"
    ]
    row = next(r for r in _results(_errors(0.88, 1.02))["ranks"] if r["subset"] == "test/ood")
    assert row["ranks"] == {"scratch": 3.0, "full": 2.0, "mft": 1.0}
    assert len(bars) == (2 if row["critical_difference"] > 1 else 0)


# ---- figures and tables --------------------------------------------------------------------------


def test_ratios_are_those_of_the_errors() -> None:
    results = _results(_errors(0.88, 1.02))
    (panel,) = trade_off_panels(results, "full")
    small = next(t for t in panel.figure.data if t.name == "mft" and len(t.x) == 8)
    assert np.mean(small.y) == pytest.approx(0.88)
    assert np.mean(small.x) == pytest.approx(1.02)
    large = next(t for t in panel.figure.data if t.name == "mft" and len(t.x) == 1)
    assert large.y[0] == pytest.approx(0.88, abs=1e-4)
    assert large.error_y.array[0] > 0
    assert large.error_y.arrayminus[0] > 0
    assert len(gain_panels(results, "full")) == 2
    inks = {t.marker.color for t in panel.figure.data}
    assert len(inks) == 2  # scratch and mft; the reference is where the lines cross


def test_one_that_is_far_off_does_not_squeeze_the_others() -> None:
    ratios = {
        "mft": Ratios(["a", "b"], np.array([0.8, 0.9]), np.array([0.7, 0.8]), np.array([0.9, 1.0])),
        "trees": Ratios(["a", "b"], np.array([500, 2]), np.array([400, 1]), np.array([600, 3])),
    }
    positions = {"mft": 0, "trees": 1}
    figure = ratio_rows(ratios, names=["a", "b"], positions=positions, axis_title="")
    trees = next(trace for trace in figure.data if trace.name == "trees")
    assert list(trees.x) == [5.0, 2.0]
    assert list(trees.customdata) == [500.0, 2.0]
    assert trees.marker.symbol[0] == "triangle-right" != trees.marker.symbol[1]
    assert trees.error_x.array[0] == 0.0
    assert 10 ** figure.layout.xaxis.range[1] < 6.0
    results = _results(_errors(0.88, 9.0))
    (trade_off,), (ood, id_) = trade_off_panels(results, "full"), gain_panels(results, "full")
    assert 10 ** trade_off.figure.layout.xaxis.range[1] < 6.0
    assert "more than 5 (mft)" in trade_off.caption
    assert "Arrow: more than 5 times it (mft)" in id_.caption
    assert "Arrow" not in ood.caption


def test_published_figures_stand_below_ours_with_their_own_gain() -> None:
    row = {"target": "t0", "subset": "test/ood", "metric": "rmse", "unit": "Ha", "source": "S 1"}
    published = [
        {**row, "method": "Big full", "value": 2.0},
        {**row, "method": "Big mft", "value": 1.5},
        {**row, "method": "Other unit", "value": 40.0, "unit": "eV"},
    ]
    results = _results(_errors(0.88, 1.0), published_rows=published)
    foot = {cells[0].text: cells for cells in error_table(results, "test/ood").foot}
    assert foot["Big mft"][0].details == ("S 1",)
    assert (foot["Big mft"][1].value, foot["Big mft"][1].details) == (1.5, ("+25.0 %",))
    assert "Other unit" not in foot
    assert foot["Big mft"][2].text == ""
    assert {"clip oracle", "mean predictor"} <= foot.keys()
    assert "Big mft" not in {c[0].text for c in error_table(results, "test/id").foot}


def test_folds_are_told_by_data_set() -> None:
    results = {
        **OPTIONAL,
        **MADE.folds_of({"a": {"full": (1.0, 0.5), "mft": (0.9, 0.5)},
                         "b": {"full": (1.0, 0.5), "mft": (1.2, 0.5)}}),
    }  # fmt: skip
    sentence = suite_verdicts(results)[0]
    assert sentence.startswith("mft, OOD RMSE: a 10.0 % below full (95 % interval [6.0, 14.0] %")
    assert "b 20.0 % above full" in sentence
    first, _ = group_tables(results)
    assert first.caption == "a: error over 3 folds"
    assert [cell.best for cell in first.rows[1]][1] is True


# ---- the page ------------------------------------------------------------------------------------


def test_every_error_and_gain_is_on_the_page(tmp_path: Path) -> None:
    results = _results(_errors(0.88, 1.02))
    page = _page(tmp_path, results)
    wanted = [row["value"] for task in results["tasks"] for row in task["rows"]]
    wanted += [row["gain_percent"] for row in results["over_tasks"]]
    wanted += [e["value"] for task in results["tasks"] for e in task["limit_distances"]]
    assert len(wanted) > 60
    assert set(wanted) <= set(page.data)
    assert 0.123456 not in page.data
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("table") == page.tags.count("caption") >= 7
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_is_held_out_is_told_by_elements() -> None:
    results = _results(_errors(0.88, 1.0))
    assert outside_table(results).rows == []
    iron = {"element": "Fe", "share": 1.0, "train_share": 0.031}
    first = results["tasks"][0]
    first["elements"] = {"test/ood": [iron, {"element": "O", "share": 0.5, "train_share": 0.7}]}
    first["sizes"]["test/ood"] = 45
    (row,) = outside_table(results).rows
    assert [cell.text for cell in row] == [first["name"], "45", "Fe 100 (3), O 50 (70)"]
    tables = (p.content for s in suite_context(results)["sections"] for p in s.parts)
    assert "What is held out" in [getattr(table, "caption", "") for table in tables]


def test_sections_without_data_are_left_out() -> None:
    plain = suite_context(_results(_errors(0.88, 1.0)))
    assert [s.id for s in plain["sections"]] == [
        "overview", "over-tasks", "ranks", "limit", "forgetting", "runs",
    ]  # fmt: skip
    assert suite_context(_curves())["sections"][0].id == "sizes"


def test_a_suite_half_done(tmp_path: Path) -> None:
    results = _results(_errors(0.88, 1.0))
    first = results["tasks"][0]
    for task in results["tasks"][1:]:
        task["runs"] = dict.fromkeys(task["runs"], False)
        for key in ("rows", "gains", "limit_distances", "reference_lines", "forgetting"):
            task[key] = []
    first["rows"] = [row for row in first["rows"] if row["recipe"] != "mft"]
    first["gains"] = [row for row in first["gains"] if row["recipe"] != "mft"]
    results |= {"over_tasks": [], "ranks": []}
    page = " ".join(_page(tmp_path, results).words)
    assert "9 of 72 runs are done" in page
    assert "to do: t1/scratch-s0" in page
    assert "No alternative to full has finished a task yet." in page


def test_a_suite_without_a_finished_run(tmp_path: Path) -> None:
    results = MADE.results_of({})
    task = MADE._task("t0", {"full": (2.0, 1.0)}, runs={"full-s0": False}, rows=[], gains=[])
    results["tasks"] = [
        {**task, "unit": "", "limit_distances": [], "reference_lines": [], "forgetting": []}
    ]
    page = " ".join(_page(tmp_path, results).words)
    assert "No run has finished, so there is nothing to compare yet." in page
    assert "0 of 1 runs are done; to do: t0/full-s0." in page


def test_no_number_is_cut_on_a_narrow_terminal() -> None:
    """Errors over eight orders of magnitude: columns of every width, in every combination."""
    results = _results(_errors(0.88, 1.0))
    for width in range(40, 160, 4):
        console = Console(width=width, record=True, file=io.StringIO())
        print_results(results, console)
        assert "…" not in console.export_text(), width


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script><img src=http://evil.example/x>"
    errors = {f"{attack}{name}": row for name, row in _errors(0.88, 1.02).items()}
    errors = {n: {**row, f"mft{attack}": row["mft"]} for n, row in errors.items()}
    row = {"target": f"{attack}t0", "subset": "test/ood", "metric": "rmse", "unit": "Ha"}
    published = [{**row, "method": attack, "source": attack, "note": attack, "value": 2.0}]
    results = _results(errors, name=attack, summary=attack, published_rows=published)
    benign = build_suite_report(_write(tmp_path, _results(_errors(0.88, 1.0))))
    n_scripts = len(re.findall("<script", benign.read_text(encoding="utf-8")))
    page = build_suite_report(_write(tmp_path, results)).read_text(encoding="utf-8")
    assert len(re.findall("<script", page)) == n_scripts
    assert "img" not in _Text(page).tags
    assert "alert(1)" in " ".join(_Text(page).words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "`format` of .* is 'list'"),
        ('{"format": 2}', "`format` of .* is 2"),
        ('{"format": 1, "name": "x"}', "has no summary, metric, tasks"),
    ],
)
def test_what_is_no_results_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(TetherError, match=message):
        read_results(tmp_path)
