"""tether-s, the backbone inside the package: it passes the contract and knows its molecules."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from tether.backbones.checkpoint import TETHER_S
from tether.backbones.load import load_backbone
from tether.data.store import Store
from tether.errors import TetherError
from tether.evaluation import forcefield_errors
from tether.labels.label import Sampling, label_structures
from tether.model import AdaptedModel
from tether.serialization import load_metadata
from tether.structures import from_ase
from tether.testing import validate_backbone

pytest.importorskip("so3krates_torch", reason="the extra so3lr is not installed")

#: Charges and spins are not in its data; the first layer has no vectors to read yet.
UNUSED = [
    *("*charge_embedding*", "*spin_embedding*"),
    "*transformers.0.filter_net_*.mlp_ev.0.weight",
]
MOLECULES = ["C6H6", "CH3CH2OH", "CH3CONH2", "C5H5N", "CH3COOH", "C4H4NH", "CH3OCH3", "CH2NHCH2"]


def test_it_passes_the_contract() -> None:
    assert validate_backbone(load_backbone("tether-s"), unused=UNUSED).failed == ()


def test_its_forces_are_those_of_xtb(tmp_path: Any) -> None:
    pytest.importorskip("tblite", reason="the extra xtb is not installed")
    frames = [molecule(name) for name in MOLECULES]
    sampling = Sampling(widths=(0.03, 0.06), n_per_structure=2)
    label_structures(
        from_ase(frames, ids=MOLECULES),
        with_="gfn2-xtb",
        out=tmp_path / "xtb.arrow",
        sampling=sampling,
        workers=0,
    )
    store = Store.open(tmp_path / "xtb.arrow")
    batch = store.batch(np.arange(store.n_systems))

    def force_error(**weights: Any) -> float:
        backbone = load_backbone("tether-s", **weights)
        return forcefield_errors(AdaptedModel(backbone, []), backbone.prepare(batch))["force_mae"]

    mean_force = float(batch.atom_labels["forces"].abs().mean())
    assert force_error() < 0.12
    assert force_error(weights="random") > 0.5 * mean_force > 0.3  # the control


def test_the_file_is_small_and_says_what_it_is() -> None:
    assert TETHER_S.stat().st_size < 5_000_000
    about = json.loads(load_metadata(TETHER_S)["backbone"])["about"]
    assert about["licence"] == "MIT"
    assert about["level_of_theory"] == "GFN2-xTB"
    assert about["errors"]["test"]["force_mae"] < 0.08
    card = TETHER_S.with_suffix(".md").read_text()
    assert f"{about['errors']['test']['force_mae']:.4g}" in card
    spec = load_backbone("tether-s").spec
    assert (spec.name, spec.elements) == ("tether-s", (1, 6, 7, 8, 9))


def test_what_it_does_not_know_is_refused() -> None:
    backbone = load_backbone("tether-s")
    cation, triplet = molecule("NH3"), molecule("H2O")
    cation.info["charge"], triplet.info["spin"] = 1, 2
    for atoms, message in (
        (molecule("SH2"), "does not know S,"),
        (bulk("C"), "accepts no cell"),
        (cation, "does not know a charge, found in structure `0`: 1"),
        (triplet, "does not know unpaired electrons, found in structure `0`: 2"),
    ):
        with pytest.raises(TetherError, match=message):
            backbone.prepare(from_ase([atoms]))


def test_random_weights_have_its_size() -> None:
    random = load_backbone("tether-s", weights="random", seed=1)
    assert isinstance(random, torch.nn.Module)
    own = load_backbone("tether-s")
    assert isinstance(own, torch.nn.Module)
    shapes = [[p.shape for p in one.parameters()] for one in (random, own)]
    assert shapes[0] == shapes[1]
