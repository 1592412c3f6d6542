"""Collapse while it happens: cheap measures of a fixed sample of atoms at each validation.

A watch reads features without gradients and draws from generators of its own, so that a run with
one ends in the same bits as a run without. It is no part of a run's identity: it may be switched on
or off when a run is resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tether.backbones.load import load_backbone
from tether.collapse.rank import effective_rank
from tether.collapse.separation import knn_purity
from tether.collapse.similarity import debiased_cka
from tether.collapse.transport import sliced_wasserstein1
from tether.data.pieces import pieces
from tether.errors import TetherError
from tether.extract import BATCH_SIZE, extract
from tether.sample import sample_atoms, some_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from tether.backbones.protocol import Backbone
    from tether.data.store import Store
    from tether.inputs import BackboneChoice
    from tether.sample import AtomSample
    from tether.structures import AtomBatch

__all__ = ["CollapseWatch", "start_watch"]

#: Atoms looked at, and structures that they are drawn from: a second of a validation, no more.
MAX_ATOMS, MAX_SYSTEMS = 1000, 1000
#: The same for every run, so that the curves of a comparison are of the same atoms.
SEED = 0


@dataclass(frozen=True)
class CollapseWatch:
    """A fixed sample of atoms with its pretrained features.

    Attributes
    ----------
    batch : AtomBatch
        The structures of the sample.
    atoms : AtomSample
        Which atoms, and their classes.
    before : ndarray, shape (n_atoms, n_features), float32
        Features of the last layer of the pretrained backbone.
    """

    batch: AtomBatch
    atoms: AtomSample
    before: NDArray[np.float32]

    def measure(self, backbone: Backbone) -> dict[str, float | int | None]:
        """Look at a backbone as it is now.

        Parameters
        ----------
        backbone : Backbone
            Of the architecture that the watch was started with.

        Returns
        -------
        dict of str to float, int or None
            ``effective_rank`` (dimensions) and ``knn_purity`` of the features, ``cka`` to and
            ``sliced_w1`` from the pretrained ones, ``n`` atoms. None where a measure cannot be
            computed, for example with atoms of a single class.
        """
        after = _last_layer(backbone, self.batch, self.atoms)
        return {
            "effective_rank": _number(lambda: effective_rank(after)),
            "knn_purity": _number(
                lambda: knn_purity(after, self.atoms.classes, groups=self.atoms.system)
            ),
            "cka": _number(lambda: debiased_cka(self.before, after)),
            "sliced_w1": _number(lambda: sliced_wasserstein1(self.before, after, seed=SEED)),
            "n": len(after),
        }


def start_watch(
    store: Store, rows: NDArray[np.int64], *, backbone: BackboneChoice, seed: int
) -> CollapseWatch:
    """Choose the atoms, and take their pretrained features.

    Parameters
    ----------
    store : Store
        Where the structures are.
    rows : ndarray, shape (n_rows,)
        The validation set.
    backbone : BackboneChoice
        Its pretrained weights are what drift is measured from, also where a run starts from random
        ones.
    seed : int
        Of the run, for backbones whose pretrained weights are random.

    Returns
    -------
    CollapseWatch
        Holds no backbone.
    """
    drawn = some_rows(rows, MAX_SYSTEMS, seed=SEED)
    atoms = sample_atoms(store, drawn, per_class=MAX_ATOMS, most=MAX_ATOMS, seed=SEED)
    batch = store.batch(atoms.rows)
    pretrained = load_backbone(
        backbone.name, weights="pretrained", seed=seed, options=backbone.options
    )
    return CollapseWatch(batch, atoms, _last_layer(pretrained, batch, atoms))


def _last_layer(backbone: Backbone, batch: AtomBatch, atoms: AtomSample) -> NDArray[np.float32]:
    return extract(backbone, pieces(batch, BATCH_SIZE), atoms=atoms.chosen).layers[-1]


def _number(measure: Callable[[], float]) -> float | None:
    try:
        return float(measure())
    except TetherError:
        return None  # a training does not end because something beside it cannot be computed
