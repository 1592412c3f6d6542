"""Model, tasks and balance of a pretraining, put together as its objective says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tether.backbones.load import load_backbone
from tether.balance.faded import Faded
from tether.corpus import hold_out, open_corpus
from tether.data.store import Store
from tether.errors import TetherError
from tether.heads.energy import EnergyHead
from tether.heads.pair import PairHead
from tether.level import element_offsets, shift_held_out
from tether.model import AdaptedModel
from tether.objective import batch_shares
from tether.run import environment
from tether.tasks.denoising import DenoisingTask, NoisyStream
from tether.tasks.forcefield import ForceFieldTask, force_scale
from tether.training.compiled import find_compiler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tether.corpus import Corpus
    from tether.graph import Graph
    from tether.inputs import BackboneChoice
    from tether.level import Offsets
    from tether.objective import Objective, PretrainInputs
    from tether.tasks.task import Task
    from tether.training.ranks import Ranks
    from tether.training.settings import TrainingSettings

__all__ = [
    "Part",
    "Prepared",
    "PretrainRequest",
    "build_balance",
    "origin",
    "prepare_pretraining",
]


@dataclass(frozen=True)
class PretrainRequest:
    """The arguments of `pretrain` that determine the result, see there."""

    inputs: PretrainInputs
    objective: Objective
    settings: TrainingSettings
    seed: int
    backbone: BackboneChoice
    weights: Literal["pretrained", "random"]
    licence: str

    def identity(self) -> dict[str, Any]:
        """What tells this run from another: for `Run.claim`."""
        sets = [
            {
                "name": one.name,
                "weight": one.weight,
                "fingerprint": Store.open(one.store).fingerprint,
            }
            for one in self.inputs.datasets
        ]
        others = {"validation": self.inputs.validation, "test": self.inputs.test}
        return {
            "objective": self.objective.identity(),
            "seed": self.seed,
            "settings": self.settings.identity(),
            "backbone": self.backbone.identity(),
            "weights": self.weights,
            "datasets": sets,
            **{name: Store.open(path).fingerprint for name, path in others.items() if path},
        }


@dataclass(frozen=True)
class Part:
    """A data set and its place in the training.

    Attributes
    ----------
    corpus : Corpus
        The data set.
    share : int
        Structures of it in a batch.
    suffix : str
        Of its tasks' names; empty where it is alone.
    head : str or None
        Of the model's `potentials`; None: the backbone's own energy head, or none at all.
    scale : float
        Root mean square force, eV/Å.
    offsets : Offsets or None
        By which its energies are shifted for each atom.
    seed : int
        Of its order, its noise and its head.
    """

    corpus: Corpus
    share: int
    suffix: str
    head: str | None
    scale: float
    offsets: Offsets | None
    seed: int


@dataclass(frozen=True)
class Prepared:
    """Everything built and checked; nothing written yet.

    Attributes
    ----------
    model : AdaptedModel
        The backbone, with heads for what it is pretrained on.
    parts : list of Part
        One a data set.
    tasks : list of Task
        The first one counts the steps.
    watched : dict of str to Graph
        Held-out sets, "validation" and perhaps "test", energies shifted as the first data set's.
    """

    model: AdaptedModel
    parts: list[Part]
    tasks: list[Task]
    watched: dict[str, Graph]

    def provenance(self) -> dict[str, Any]:
        """What it was made from, and with; for JSON."""
        sets = [
            {"name": corpus.data.name, "n_systems": corpus.store.n_systems, **origin(corpus.store)}
            for corpus in (part.corpus for part in self.parts)
        ]
        spec = self.model.backbone.spec.to_dict()
        return {"backbone": spec, "datasets": sets, **environment()}


def origin(store: Store) -> dict[str, Any]:
    """Where labels come from: fingerprint and level of theory of a store."""
    return {
        "fingerprint": store.fingerprint,
        "level_of_theory": store.metadata.get("level_of_theory", "unknown"),
    }


def prepare_pretraining(request: PretrainRequest, ranks: Ranks) -> Prepared:
    """Open and check what is read, build the model, and put the tasks together.

    Parameters
    ----------
    request : PretrainRequest
        What is asked for.
    ranks : Ranks
        Who takes part.

    Returns
    -------
    Prepared
        For the engine.

    Raises
    ------
    TetherError
        For bad input.
    """
    inputs, objective, settings = request.inputs, request.objective, request.settings
    if settings.compile:
        find_compiler()
    stores = [Store.open(one.store) for one in inputs.datasets]
    names = [one.name for one in inputs.datasets]
    if not names or len(set(names)) < len(names):
        raise TetherError(
            f"data sets {names}",
            expected="one or more, each with a name of its own",
            fix="set name",
        )
    model = _build_model(request)
    if objective.needs_forces:
        for store in stores:
            _check_labels(store)
    rows, watched = _watched(request, model, stores[0])
    # By fingerprint: what is held out of a store is not trained on as another data set of it.
    kept = {stores[0].fingerprint: rows}
    corpora = [
        open_corpus(data, store, model.backbone.prepare, rows=kept.get(store.fingerprint))
        for data, store in zip(inputs.datasets, stores, strict=True)
    ]
    shares = batch_shares(
        [len(corpus.rows) for corpus in corpora],
        batch_size=settings.batch_size,
        temperature=objective.temperature,
    )
    parts = [_part(request, model, *pair) for pair in zip(corpora, shares, strict=True)]
    first = parts[0]
    if first.offsets is not None:
        watched = {name: shift_held_out(graph, first.offsets) for name, graph in watched.items()}
    if objective.has_denoising:
        head = PairHead(
            model.backbone.spec.n_features,
            cutoff=model.backbone.spec.cutoff,
            conditioned=objective.conditioned,
            # A head of direct forces has the same layers: not to start as its twin.
            seed=_seed(request.seed, len(parts) if first.head else 0),
        )
        model.denoising = head
    tasks = [task for part in parts for task in _tasks(request, model, part, ranks)]
    # The lead, which counts the steps, must be there until the end: denoising may fade.
    tasks.sort(key=lambda task: isinstance(task, DenoisingTask))
    return Prepared(model, parts, tasks, watched)


def _build_model(request: PretrainRequest) -> AdaptedModel:
    """The backbone, and an energy head for each level of theory that is not its own."""
    backbone = load_backbone(
        request.backbone.name,
        weights=request.weights,
        seed=request.seed,
        options=request.backbone.options,
    )
    model = AdaptedModel(backbone, [])
    objective = request.objective
    if not objective.has_forcefield:
        return model
    if objective.forces == "conservative" and not model.is_potential:
        raise TetherError(
            f"backbone {backbone.spec.name!r} has no energy head",
            expected="a potential, or direct forces",
            fix="set objective.forces=direct, or choose another backbone",
        )
    return model


def _check_labels(store: Store) -> None:
    """Refuse a store where a structure lacks energy or forces, before it poisons what it is for."""
    for name in ("forces", "energy"):
        given = name in store.targets
        lacking = np.flatnonzero(~store.is_labelled(name)) if given else np.arange(len(store))
        if len(lacking):
            raise TetherError(
                f"{len(lacking):,} of {store.n_systems:,} structures in {store.path}, the first "
                f"{store.ids[lacking[0]]!r}, lack {name!r}",
                expected="energy (eV) and forces (eV/Å) of every structure",
                fix="make them with `tether label`, or prepare the store without these structures",
            )


def _watched(
    request: PretrainRequest, model: AdaptedModel, first: Store
) -> tuple[NDArray[np.int64] | None, dict[str, Graph]]:
    """Rows of the first data set to train on, None for all, and the sets to judge by."""
    inputs = request.inputs
    rows, watched = None, {}
    if inputs.validation is None:
        rows, held = hold_out(first, seed=request.seed)
        watched["validation"] = model.backbone.prepare(first.batch(held))
    for name, path in (("validation", inputs.validation), ("test", inputs.test)):
        if path is not None:
            store = Store.open(path)
            if request.objective.needs_forces:
                _check_labels(store)
            watched[name] = model.backbone.prepare(store.batch(np.arange(store.n_systems)))
    return rows, watched


def _part(request: PretrainRequest, model: AdaptedModel, corpus: Corpus, share: int) -> Part:
    objective, names = request.objective, [one.name for one in request.inputs.datasets]
    position, name = names.index(corpus.data.name), None
    suffix = f"/{corpus.data.name}" if len(names) > 1 else ""
    seed = _seed(request.seed, position)
    scale = force_scale(corpus.sample) if objective.needs_forces else 1.0
    if not objective.has_forcefield:
        return Part(corpus, share, suffix, None, scale, None, seed)
    direct = objective.forces == "direct"
    if direct or position:
        spec, name = model.backbone.spec, corpus.data.name
        if "." in name or hasattr(model.potentials, name):
            raise TetherError(
                f"data set name {name!r}",
                expected="for a set with a head: no dot in it, and no method of torch's ModuleDict",
                fix="give it another with `name`",
            )
        pair = PairHead(spec.n_features, cutoff=spec.cutoff, seed=seed) if direct else None
        model.potentials[name] = EnergyHead(spec.n_features, scale=scale, direct=pair, seed=seed)
    offsets = element_offsets(model, corpus.sample, head=name)
    return Part(corpus, share, suffix, name, scale, offsets, seed)


def _seed(seed: int, position: int) -> int:
    """The run's for the first data set, independent ones for the others."""
    return int(np.random.SeedSequence([seed, position]).generate_state(1)[0]) if position else seed


def _tasks(request: PretrainRequest, model: AdaptedModel, part: Part, ranks: Ranks) -> list[Task]:
    objective, settings = request.objective, request.settings
    tasks: list[Task] = []
    if objective.has_forcefield:
        tasks.append(
            ForceFieldTask(
                part.corpus.stream(
                    batch_size=part.share,
                    seed=part.seed,
                    offsets=None if part.offsets is None else part.offsets.per_element,
                    rank=ranks.rank,
                    n_ranks=ranks.n,
                ),
                scale=part.scale,
                force_weight=settings.force_weight,
                energy_weight=settings.energy_weight,
                stress_weight=settings.stress_weight,
                name=f"forcefield{part.suffix}",
                head=part.head,
                per_structure=objective.per_structure,
            )
        )
    if isinstance(model.denoising, PairHead):
        stream = part.corpus.stream(batch_size=part.share, seed=part.seed + 1)
        tasks.append(
            DenoisingTask(
                NoisyStream(stream, objective.scales, part.seed, objective.strain),
                model.denoising,
                force_scale=part.scale,
                name=f"denoising{part.suffix}",
            )
        )
    return tasks


def build_balance(ready: Prepared, objective: Objective, n_steps: int) -> Faded:
    """Each data set counts with its weight and its share of the batch.

    Parameters
    ----------
    ready : Prepared
        Says which tasks.
    objective : Objective
        Says how denoising counts, and when it goes.
    n_steps : int
        Of the whole training.

    Returns
    -------
    Faded
        For the engine.
    """
    total = sum(part.share for part in ready.parts)
    hybrid = objective.kind == "hybrid"
    weights, ends = {}, {}
    for part in ready.parts:
        denoising, weight = f"denoising{part.suffix}", part.corpus.data.weight * part.share / total
        weights[f"forcefield{part.suffix}"] = weight
        weights[denoising] = weight * (objective.denoising_weight if hybrid else 1.0)
        if hybrid and objective.fade_by:
            ends[denoising] = max(1, round(objective.fade_by * n_steps))
    return Faded(weights, ends)
