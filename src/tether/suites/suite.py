"""`Suite`: several comparisons that answer one question, with the commands that make their data.

A suite is a YAML file: one of those beside this module, or a user's own::

    summary: what it asks
    metric: rmse                      # that its tables show
    published: qm9-boom               # optional: figures of the literature, see `tether.outside`
    units: {gap: Ha}                  # optional: of a target, or of tasks with a value, without one
    tasks:                            # name → values for {placeholders}
      homo: {target: homo}
      gap: {target: gap, config: {recipes: [scratch, full, mft, wise]}}   # changes for one task
    stages:                           # tether commands; those that name a task's value run for each
      - prepare qm9 --target homo --target gap --out {out}/qm9.arrow
      - split {out}/qm9.arrow --target {target} --out {out}/{task}/split.json
    config:                           # of `tether compare`, with placeholders
      store: "{out}/qm9.arrow"
      split: "{out}/{task}/split.json"
      targets: ["{target}"]

Placeholders: ``{out}`` the suite's folder, ``{data}`` the folder of files that the suite does not
make, ``{task}`` the task's name, and the values of the task. They stand within one argument of a
stage, whatever they are. What a task changes of the config goes into its mappings (``training: {lr:
1e-3}`` leaves the other settings); lists are taken as they are.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tether.closed import Closed, apply_override, checked, read_yaml
from tether.config import Config
from tether.errors import TetherError
from tether.outside.published import published_figures
from tether.recipe import NAME
from tether.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    #: Of a task, for its placeholders.
    Values = Mapping[str, Any]

__all__ = ["Stage", "Suite", "Task", "load_suite", "suite_names"]

#: Verbs that a stage may use: those that make data, or backbones.
STAGE_VERBS = ("prepare", "split", "label", "pretrain")
_FOLDER = files(__package__)
#: Folders that stay as the suite names them.
_NAMED = {"out": "{out}", "data": "{data}"}


class SuiteFile(Closed):
    """What a suite's file holds."""

    summary: str
    metric: Literal["mae", "rmse"] = "rmse"
    published: str | None = None
    units: dict[str, str] = Field(default_factory=dict)
    groups: str | None = None
    axis: str | None = None
    tasks: dict[str, dict[str, Any]] = Field(min_length=1)
    stages: list[str] = Field(default_factory=list)
    config: dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One comparison of a suite.

    Attributes
    ----------
    name : str
        Of its folder.
    values : dict
        What it was made from: target, fold, size, …
    config : Config
        What is compared.
    out : Path
        Its folder.
    """

    name: str
    values: dict[str, Any]
    config: Config
    out: Path

    @property
    def has_data(self) -> bool:
        """Whether the stages have made what its runs read."""
        return self.config.store.exists() and self.config.split.exists()


@dataclass(frozen=True)
class Stage:
    """A command that makes data, or a backbone.

    Attributes
    ----------
    arguments : tuple of str
        Of ``tether``.
    out : Path
        What it makes; where it is there, the stage is done.
    template : str
        The command before the folders were filled in.
    """

    arguments: tuple[str, ...]
    out: Path
    template: str

    @property
    def is_done(self) -> bool:
        """Whether its result is there: a file is written in one step, at the end."""
        return Run(self.out).is_complete if self.arguments[0] == "pretrain" else self.out.exists()


@dataclass(frozen=True)
class Suite:
    """A suite whose placeholders are filled.

    Attributes
    ----------
    name, summary : str
        What it is called, and what it asks.
    metric : {"mae", "rmse"}
        What its tables show.
    published : str or None
        Set of figures of the literature to stand beside.
    units : dict of str to str
        Target, or value of tasks → unit of labels that have none in their store.
    groups : str or None
        Value by which tasks are folds of one data set.
    axis : str or None
        Numeric value along which tasks form a curve, as the size of the training set.
    tasks : tuple of Task
        Comparisons.
    stages : tuple of Stage
        Commands, in order.
    out : Path
        Its folder.
    """

    name: str
    summary: str
    metric: Literal["mae", "rmse"]
    published: str | None
    units: dict[str, str]
    groups: str | None
    axis: str | None
    tasks: tuple[Task, ...]
    stages: tuple[Stage, ...]
    out: Path


def suite_names() -> list[str]:
    """The suites that tether brings along.

    Returns
    -------
    list of str
        Names for `load_suite`.
    """
    return sorted(
        Path(entry.name).stem for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml")
    )


def load_suite(
    name: str,
    *,
    out: Path,
    data: Path | None = None,
    tasks: Sequence[str] = (),
    recipes: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Suite:
    """Read a suite and fill its placeholders.

    Parameters
    ----------
    name : str
        One of `suite_names`, or a YAML file.
    out : Path
        Folder of the suite.
    data : Path, optional
        Folder of the files that a suite's stages read and do not make.
    tasks, recipes : sequence of str
        The only ones wanted; default all.
    overrides : sequence of str
        ``key=value``, for the configuration of every task.

    Returns
    -------
    Suite
        Checked, nothing read but its file.

    Raises
    ------
    TetherError
        For an unknown suite, task, recipe, key, placeholder or published set, a command that is
        not one of `STAGE_VERBS`, or folders of data that are needed and not given.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else Path(str(_FOLDER / f"{name}.yaml"))
    if not path.is_file():
        raise TetherError(
            f"unknown suite {name!r}",
            expected=f"one of {', '.join(suite_names())}, or a YAML file",
            fix="see `tether bench --help`",
        )
    content = checked(SuiteFile, read_yaml(path, expected="tether.suites.suite"), f"suite {name}")
    _known(tasks, content.tasks, f"task of suite {name}")
    for given in content.tasks.values():
        _known([key for key in (content.axis, content.groups) if key], given, "value of a task")
    published_figures(suite=content.published)  # refuses a set that it does not know
    folders = {"out": str(out), **({} if data is None else {"data": str(data)})}
    values = {task: _values(task, given, folders) for task, given in content.tasks.items()}
    pairs = {t: (values[t], _values(t, given, _NAMED)) for t, given in content.tasks.items()}
    wanted = [task for task in content.tasks if not tasks or task in tasks]
    configs = {task: _config(content, task, values[task], overrides) for task in wanted}
    texts = (v for given in content.tasks.values() for v in given.values() if isinstance(v, str))
    named = dict.fromkeys([*content.config.get("targets", ()), *texts])
    _known(content.units, named, "target or value of a task in `units`")
    if content.axis:
        _check_axis(content.axis, values, configs)
    names = dict.fromkeys(name for config in configs.values() for name in config.methods())
    _known(recipes, names, f"recipe of suite {name}")
    if recipes:
        configs = {task: _only(config, recipes) for task, config in configs.items()}
    return Suite(
        name=path.stem,
        summary=content.summary,
        metric=content.metric,
        published=content.published,
        units=content.units,
        groups=content.groups,
        axis=content.axis,
        tasks=tuple(
            Task(task, _own(content.tasks[task]), config, out / task)
            for task, config in configs.items()
            if config.methods()  # not every task has every recipe
        ),
        stages=tuple(_needed(content.stages, pairs, wanted)),
        out=out,
    )


def _known(wanted: Iterable[str], known: Mapping[str, Any], what: str) -> None:
    for name in wanted:
        if name not in known:
            raise TetherError(
                f"unknown {what}: {name!r}",
                expected=f"one of {', '.join(known)}",
                fix="correct the name, or leave it out",
            )


def _check_axis(
    axis: str, values: Mapping[str, Mapping[str, Any]], configs: Mapping[str, Config]
) -> None:
    """Refuse what makes no curve: values that are no positive numbers, and one point twice."""
    found: dict[tuple[float, str], str] = {}
    for task, config in configs.items():
        x = values[task][axis]
        if isinstance(x, bool) or not isinstance(x, int | float) or not x > 0:
            raise TetherError(
                f"`{axis}` of task {task} is {x!r}",
                expected="a number above 0, as it is the axis of the suite",
                fix="write it without quotes, or take `axis` out",
            )
        for target in config.targets:
            other = found.setdefault((x, target), task)
            if other != task:
                raise TetherError(
                    f"tasks {other} and {task} both have {axis} {x} and target {target}",
                    expected="one task for each point of a curve",
                    fix="take one of them out, or use more seeds",
                )


def _values(task: str, given: Mapping[str, Any], folders: Mapping[str, str]) -> dict[str, Any]:
    """Values of a task; texts among them may name the folders."""
    if not NAME.fullmatch(task):
        raise TetherError(
            f"task name {task!r}",
            expected="letters, digits and . _ + -, as it names a folder",
            fix="choose another name",
        )
    return {**folders, "task": task, **_filled(_own(given), folders)}


def _own(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key != "config"}


def _filled(template: Any, values: Mapping[str, Any]) -> Any:
    """Fill the placeholders of every text in a value as YAML has them."""
    if isinstance(template, dict):
        return {key: _filled(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [_filled(value, values) for value in template]
    if not isinstance(template, str):
        return template
    try:
        return template.format_map(values)
    except KeyError as error:
        missing = str(error.args[0])
        fix = "name it with --data FOLDER" if missing == "data" else "add it to each task"
        raise TetherError(
            f"{template!r} names {{{missing}}}, which has no value",
            expected=f"one of {', '.join(values)}",
            fix=fix,
        ) from None
    except (ValueError, IndexError, AttributeError) as error:
        raise TetherError(
            f"{template!r} cannot be filled ({error})",
            expected=f"placeholders such as {{task}}: {', '.join(values)}",
            fix="name each, and double braces that are none: {{ }}",
        ) from None


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes into a mapping, and into the mappings in it."""
    return {**base} | {
        key: _merged(base[key], value)
        if isinstance(value, dict) and isinstance(base.get(key), dict)
        else value
        for key, value in changes.items()
    }


def _config(
    content: SuiteFile,
    task: str,
    values: Mapping[str, Any],
    overrides: Sequence[str],
) -> Config:
    changes = content.tasks[task].get("config") or {}
    if not isinstance(changes, dict):
        raise TetherError(
            f"`config` of task {task} is {changes!r}",
            expected="a mapping",
            fix="write config: {recipes: [scratch, full]}",
        )
    fields = _filled(_merged(content.config, changes), values)
    for override in overrides:
        apply_override(fields, override)
    config = checked(Config, fields, f"config of task {task}")
    config.check()
    return config


def _only(config: Config, recipes: Sequence[str]) -> Config:
    entries = zip(config.points(), config.recipes, strict=True)
    chosen = tuple(entry for point, entry in entries if point.name in recipes)
    outside = tuple(name for name in config.outside if name in recipes)
    return config.model_copy(update={"recipes": chosen, "outside": outside})


def _stages(templates: Sequence[str], tasks: Sequence[tuple[Values, Values]]) -> list[Stage]:
    """Each template for each task, stage by stage; commands that come out the same stand once."""
    return list(dict.fromkeys(_stage(text, *pair) for text in templates for pair in tasks))


def _needed(
    templates: Sequence[str], tasks: Mapping[str, tuple[Values, Values]], wanted: Sequence[str]
) -> list[Stage]:
    """Stages of the wanted tasks, and those of other tasks whose result one of them reads."""
    own = _stages(templates, [tasks[task] for task in wanted])
    needed: list[Stage] = []
    for stage in reversed(_stages(templates, list(tasks.values()))):
        read = (text for later in needed for text in later.arguments)
        if stage in own or any(str(stage.out) in text for text in read):
            needed.append(stage)
    return needed[::-1]


def _stage(template: str, values: Values, named: Values) -> Stage:
    try:
        parts = shlex.split(template)
    except ValueError as error:
        raise TetherError(
            f"stage {template!r} ({error})", expected="a command line", fix="close its quotes"
        ) from None
    # Filled after they are split: a folder may have a blank in its name.
    arguments = tuple(_filled(part, values) for part in parts)
    if not arguments or arguments[0] not in STAGE_VERBS or "--out" not in arguments[:-1]:
        raise TetherError(
            f"stage {shlex.join(arguments)!r}",
            expected=f"one of {', '.join(STAGE_VERBS)}, with --out",
            fix="write it as on the command line, without `tether`",
        )
    out = Path(arguments[arguments.index("--out") + 1])
    return Stage(arguments, out, shlex.join(_filled(part, named) for part in parts))
