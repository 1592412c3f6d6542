"""Methods compared over several tasks: paired tests, effect sizes, mean ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "MeanRanks",
    "TaskComparison",
    "alike",
    "compare_over_tasks",
    "holm",
    "mean_ranks",
    "rank_biserial",
]


@dataclass(frozen=True)
class TaskComparison:
    """A method against a reference over tasks.

    Attributes
    ----------
    method, reference : str
        Names.
    n_tasks, n_better : int
        Tasks, and those on which the method has the smaller error.
    gain_percent : float
        ``100 * (1 - g)`` with the geometric mean g of the ratios of errors: positive = better.
    low, high : float
        Bounds of the gain's interval, in percent, from Student's t on the logarithms of the ratios.
    p_value : float
        Of Wilcoxon's signed-rank test on the same logarithms, two-sided.
    p_holm : float
        The same, corrected for all methods that are compared with the reference.
    effect_size : float
        Rank-biserial correlation, −1 to 1: 1 = better on every task.
    """

    method: str
    reference: str
    n_tasks: int
    n_better: int
    gain_percent: float
    low: float
    high: float
    p_value: float
    p_holm: float
    effect_size: float


@dataclass(frozen=True)
class MeanRanks:
    """Ranks of methods, averaged over tasks.

    Attributes
    ----------
    ranks : array, shape (n_methods,)
        1 = smallest error; ties share their mean rank.
    p_value : float
        Of Friedman's test that all methods are alike.
    critical_difference : float
        Two methods whose mean ranks differ by less cannot be told apart (Nemenyi).
    n_tasks : int
        Tasks.
    """

    ranks: NDArray[np.float64]
    p_value: float
    critical_difference: float
    n_tasks: int


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    r"""p-values corrected for their number, by Holm's step-down rule.

    Sorted upwards, :math:`\tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1)\, p_{(j)})`.
    Rejecting where :math:`\tilde p \le \alpha` makes the chance of any false rejection at most α,
    whatever the dependence of the tests, and never rejects less than Bonferroni's correction.

    Parameters
    ----------
    p_values : array, shape (m,)
        Of one family of tests.

    Returns
    -------
    array, shape (m,)
        In the same order.

    Raises
    ------
    TetherError
        For values outside [0, 1].

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]

    References
    ----------
    Holm, Scand. J. Stat. 6, 65 (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    wrong = p[~((p >= 0) & (p <= 1))]
    if p.ndim != 1 or wrong.size:
        raise TetherError(
            f"p-values have shape {p.shape}" + (f" and hold {wrong[0]}" if wrong.size else ""),
            expected="a list of numbers between 0 and 1",
            fix="leave tests out that could not be made",
        )
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(steps)
    return corrected


def rank_biserial(differences: ArrayLike) -> float:
    r"""Effect size of paired differences: :math:`(R^+ - R^-)/(R^+ + R^-)`.

    :math:`R^\pm` are the sums of the ranks of :math:`|d|` over positive and negative differences;
    zeros are left out. It is Wilcoxon's statistic on a scale from −1 to 1: the share of evidence
    for one side less that for the other.

    Parameters
    ----------
    differences : array, shape (n,)
        Paired differences.

    Returns
    -------
    float
        1 when all are positive, 0 when neither side prevails or all are zero.

    Raises
    ------
    TetherError
        For no or non-finite differences.

    References
    ----------
    Kerby, Compr. Psychol. 3, 11.IT.3.1 (2014).
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or not d.size or not np.isfinite(d).all():
        raise TetherError(
            f"differences have shape {d.shape} and {int(d.size - np.isfinite(d).sum())} value(s) "
            "that are not finite",
            expected="a list of finite numbers",
            fix="leave tasks out that one of the two methods has not",
        )
    d = d[d != 0]
    if not d.size:
        return 0.0
    rank = stats.rankdata(np.abs(d))
    return float((rank[d > 0].sum() - rank[d < 0].sum()) / rank.sum())


def compare_over_tasks(
    errors: Mapping[str, ArrayLike], reference: str, *, level: float = 0.95
) -> list[TaskComparison]:
    """Compare methods with a reference over tasks, each task counting once.

    Tasks differ in unit and difficulty, so that ratios of errors are averaged, as logarithms.
    Wilcoxon's test is exact for few tasks: below six tasks no p-value can reach 0.05.

    Parameters
    ----------
    errors : mapping of str to array, each of shape (n_tasks,)
        Errors of each method (its mean over seeds and folds), in the same order of tasks.
    reference : str
        One of the methods.
    level : float
        Nominal coverage of the intervals.

    Returns
    -------
    list of TaskComparison
        One a method other than the reference, in the order of `errors`.

    Raises
    ------
    TetherError
        For an unknown reference, fewer than two tasks, or errors that are not positive.

    References
    ----------
    Demšar, J. Mach. Learn. Res. 7, 1 (2006), for the test over data sets.
    """
    names, table = _table(errors)
    if reference not in names or not 0 < level < 1:
        raise TetherError(
            f"`reference` is {reference!r} and `level` {level}",
            expected=f"one of {', '.join(names)}, and a level between 0 and 1",
            fix=f"reference={names[0]!r}",
        )
    others = [name for name in names if name != reference]
    # Positive where the method is better.
    logs = np.log(table[:, [names.index(reference)]] / table)
    by_name = {name: logs[:, names.index(name)] for name in others}
    p_values = [_wilcoxon(by_name[name]) for name in others]
    found = []
    for name, p_value, p_holm in zip(others, p_values, holm(p_values), strict=True):
        log = by_name[name]
        error = log.std(ddof=1) / np.sqrt(len(log))
        reach = float(stats.t.ppf((1 + level) / 2, len(log) - 1)) * error
        gain, low, high = (
            100 * (1 - np.exp(-x)) for x in (log.mean(), log.mean() - reach, log.mean() + reach)
        )
        found.append(
            TaskComparison(
                method=name,
                reference=reference,
                n_tasks=len(log),
                n_better=int((log > 0).sum()),
                gain_percent=float(gain),
                low=float(low),
                high=float(high),
                p_value=p_value,
                p_holm=float(p_holm),
                effect_size=rank_biserial(log),
            )
        )
    return found


def mean_ranks(errors: Mapping[str, ArrayLike], *, alpha: float = 0.05) -> MeanRanks:
    r"""Mean rank of each method over tasks, with Nemenyi's critical difference.

    :math:`CD = q_\alpha \sqrt{k(k+1)/(6N)}` for k methods and N tasks, with :math:`q_\alpha` the
    quantile of the studentised range of k groups and infinite degrees of freedom, over
    :math:`\sqrt 2`.

    Parameters
    ----------
    errors : mapping of str to array, each of shape (n_tasks,)
        Errors of each method, in the same order of tasks.
    alpha : float
        Chance of any false difference.

    Returns
    -------
    MeanRanks
        Ranks in the order of `errors`.

    Raises
    ------
    TetherError
        For fewer than three methods or two tasks, or errors that are not positive.

    References
    ----------
    Demšar, J. Mach. Learn. Res. 7, 1 (2006).
    """
    names, table = _table(errors)
    n_tasks, n_methods = table.shape
    if n_methods < 3 or not 0 < alpha < 1:
        raise TetherError(
            f"there are {n_methods} methods ({', '.join(names)}) and `alpha` is {alpha}",
            expected="at least three methods, and 0 < alpha < 1",
            fix="compare two methods with compare_over_tasks",
        )
    ranks = stats.rankdata(table, axis=1)
    if (ranks == ranks[:, :1]).all():
        p_value = 1.0  # every method ties on every task, where Friedman's statistic is 0/0
    else:
        p_value = float(stats.friedmanchisquare(*table.T).pvalue)
    quantile = float(stats.studentized_range.ppf(1 - alpha, n_methods, np.inf)) / np.sqrt(2)
    reach = quantile * np.sqrt(n_methods * (n_methods + 1) / (6 * n_tasks))
    return MeanRanks(ranks.mean(axis=0), p_value, float(reach), n_tasks)


def alike(ranks: ArrayLike, critical_difference: float) -> list[list[int]]:
    """Groups of methods that cannot be told apart: the bars of Demšar's diagram.

    Parameters
    ----------
    ranks : array, shape (n_methods,)
        Mean ranks.
    critical_difference : float
        Of `mean_ranks`.

    Returns
    -------
    list of list of int
        Positions in `ranks`, best first, of each largest group whose ranks all differ by less;
        groups of one are left out. Groups may overlap: being alike is not transitive.

    Examples
    --------
    >>> alike([1.0, 3.0, 1.8, 2.6], 1.0)
    [[0, 2], [2, 3], [3, 1]]
    """
    values = np.asarray(ranks, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    groups: list[list[int]] = []
    end = 0
    for start in range(len(order)):
        reach = values[order[start]] + critical_difference
        stop = start + int((values[order[start:]] < reach).sum())
        if stop > end and stop - start > 1:  # else it lies within the group before
            groups.append(order[start:stop].tolist())
        end = max(end, stop)
    return groups


def _wilcoxon(differences: NDArray[np.float64]) -> float:
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


def _table(errors: Mapping[str, ArrayLike]) -> tuple[list[str], NDArray[np.float64]]:
    """Names, and errors of shape (n_tasks, n_methods)."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in errors.items()}
    shapes = sorted({array.shape for array in arrays.values()})
    if len(shapes) != 1 or len(shapes[0]) != 1 or shapes[0][0] < 2:
        raise TetherError(
            f"errors have shapes {shapes}",
            expected="one error a task, of at least two tasks, the same for each method",
            fix="leave tasks out that a method has not run",
        )
    for name, array in arrays.items():
        wrong = array[~(np.isfinite(array) & (array > 0))]
        if wrong.size:
            raise TetherError(
                f"method {name!r} has an error of {wrong[0]}",
                expected="positive numbers",
                fix="leave that task out of all methods",
            )
    return list(arrays), np.stack(list(arrays.values()), axis=1)
