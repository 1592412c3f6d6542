"""SevenNet: our forward pass is the package's, to rounding, and passes the contract."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from ase.io import read

from tether.backbones import sevennet_weights
from tether.backbones import weights as package_weights
from tether.backbones.load import load_backbone
from tether.backbones.sevennet import ELEMENTS, Sevennet
from tether.backbones.sevennet_layer import SILU_NORM
from tether.errors import TetherError
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.movement.lora import Lora
from tether.structures import AtomBatch, from_ase
from tether.targets import Target
from tether.testing import validate_backbone
from tether.testing.contract import CHECK_NAMES
from tether.testing.structures import (
    beta_brass,
    ethanol,
    isolated_atom,
    rattled,
    silicon,
    skewed_silicon,
    small_structures,
    sodium_chloride,
    water,
)

pytest.importorskip("sevenn", reason="the extra sevennet is not installed")
# The package and e3nn warn about torch's script compiler, at import and in forward.
pytestmark = pytest.mark.filterwarnings("ignore")

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "forcefield"
SMALL = {"n_features": [8, 4, 4, 4], "n_layers": 3, "n_hidden": 16}


@pytest.fixture(scope="module", params=list(sevennet_weights.CHECKPOINTS))
def checkpoint(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def backbone(checkpoint: str) -> Sevennet:
    return load_sevennet(checkpoint).double()


@pytest.fixture(scope="module")
def reference(checkpoint: str) -> Any:
    return package_model(checkpoint)


def load_sevennet(checkpoint: str = "7net-0") -> Sevennet:
    return load_backbone("sevennet", options={"checkpoint": checkpoint})  # type: ignore[return-value]


def package_model(checkpoint: str) -> Any:
    """The package's model in double precision, its coupling tensors too."""
    from e3nn.o3 import wigner_3j
    from sevenn.util import load_checkpoint

    model = load_checkpoint(checkpoint).build_model().double().eval()
    model.set_is_batch_data(False)
    for name, buffer in model.named_buffers():
        if "_w3j_" in name:
            degrees = [int(degree) for degree in name.rpartition("_w3j_")[2].split("_")]
            buffer.copy_(wigner_3j(*degrees, dtype=torch.float64))

    def in_double(_module: Any, _inputs: Any, data: Any) -> Any:
        for key in ("x", "node_attr"):  # made in single precision whatever the model is in
            data[key] = data[key].double()
        return data

    model.onehot_idx_to_onehot.register_forward_hook(in_double)
    return model


def package(model: Any, frames: list[Atoms]) -> dict[str, np.ndarray]:
    """The package's own prediction from its own graphs, structure by structure, in our units."""
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import unlabeled_atoms_to_graph
    from sevenn.util import dtype_correct

    nodes: list[torch.Tensor] = []
    last = model.get_submodule("4_equivariant_gate")
    hook = last.register_forward_hook(lambda _m, _i, data: nodes.append(data["x"].detach().clone()))
    found: dict[str, list[Any]] = {name: [] for name in ("energy", "forces", "stress")}
    for atoms in frames:
        content = unlabeled_atoms_to_graph(atoms, model.cutoff)
        data = model(
            AtomGraphData(**{k: dtype_correct(v, torch.float64) for k, v in content.items()})
        )
        found["energy"].append(float(data["inferred_total_energy"]))
        found["forces"].append(data["inferred_force"].detach().numpy())
        # Theirs is positive under compression: xx, yy, zz, xy, yz, zx.
        found["stress"].append(
            -data["inferred_stress"].detach().numpy()[[0, 3, 5, 3, 1, 4, 5, 4, 2]]
        )
    hook.remove()
    return {
        "energy": np.array(found["energy"]),
        "forces": np.concatenate(found["forces"]),
        "stress": np.stack(found["stress"]).reshape(-1, 3, 3),
        "node": torch.cat(nodes).numpy(),
    }


def own(backbone: Sevennet, batch: AtomBatch) -> dict[str, np.ndarray]:
    graph = backbone.prepare(batch).differentiable()
    features = backbone(graph)
    energy, forces, stress = backbone.energy_forces(graph, features)
    values = {"energy": energy, "forces": forces, "stress": stress, "node": features.node}
    return {name: v.detach().numpy() for name, v in values.items() if v is not None}


def assert_agree(backbone: Sevennet, reference: Any, frames: list[Atoms]) -> None:
    ours, theirs = own(backbone, from_ase(frames)), package(reference, frames)
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=1e-11, rtol=1e-11, err_msg=name)
    assert np.abs(ours["forces"]).max() > 0.1


def oblique_cell() -> Atoms:
    """The same crystal as β-brass in a long and very oblique cell."""
    return make_supercell(beta_brass(), [[1, 0, 0], [3, 1, 0], [-2, 4, 1]])  # type: ignore[no-untyped-call]


def test_agrees_with_the_package_on_built_crystals(backbone: Sevennet, reference: Any) -> None:
    # Small cells with many images, skewed cells, one atom bonded to itself, a slab.
    slab = rattled(bulk("Au", cubic=True))
    slab.pbc[2], slab.cell[2] = False, [0, 0, 20]
    frames = [silicon(), sodium_chloride(), oblique_cell(), skewed_silicon(), bulk("Cu"), slab]
    assert_agree(backbone, reference, frames)


@pytest.mark.parametrize("name", ["mptrj-random-1k", "alexandria-random-1k", "random-TP"])
def test_agrees_with_the_package_on_force_field_data(
    backbone: Sevennet, reference: Any, name: str
) -> None:
    path = SHARED / f"{name}.xyz.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here: real data come with the workplace, not the package")
    frames = read(path, index="3:200:10", format="extxyz")
    known = sorted((a for a in frames if set(a.numbers.tolist()) <= set(ELEMENTS)), key=len)
    # Of relaxed crystals, forces are small: moved a little, an error would show.
    assert_agree(backbone, reference, [rattled(atoms) for atoms in known[:3]])


def test_agrees_with_the_package_on_molecules(backbone: Sevennet, reference: Any) -> None:
    frames = [water(), ethanol(), isolated_atom(26)]
    ours, theirs = own(backbone, from_ase(frames)), package(reference, [*frames[:2], frames[2]])
    for name in ("energy", "forces", "node"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-11, rtol=1e-11)
    assert "stress" not in ours
    assert not ours["forces"][-1].any()


def test_the_calculator_of_the_package_gives_the_same() -> None:
    from sevenn.calculator import SevenNetCalculator

    frames = [skewed_silicon(), sodium_chloride()]
    ours = own(load_sevennet(), from_ase(frames))
    calculator = SevenNetCalculator("7net-0", device="cpu")
    for at, atoms in enumerate(frames):
        atoms.calc = calculator
        energy, stress = atoms.get_potential_energy(), atoms.get_stress(voigt=False)
        assert ours["energy"][at] == pytest.approx(energy, abs=2e-5)
        np.testing.assert_allclose(ours["stress"][at], stress, atol=1e-6)
    forces = np.concatenate([atoms.get_forces() for atoms in frames])
    np.testing.assert_allclose(ours["forces"], forces, atol=2e-5)


def test_molecules_are_treated_sensibly() -> None:
    # Atomisation energies of PBE (J. Paier et al., doi 10.1063/1.1926272), eV, with the network's
    # own atoms: far from crystals, but no nonsense.
    published = {"H2O": 10.16, "CH4": 18.20, "CO2": 18.04, "N2": 10.57}
    energies = {
        name: own(load_sevennet(), from_ase(molecule(name)))["energy"][0] for name in published
    }
    for name, expected in published.items():
        parts = [isolated_atom(z) for z in molecule(name).numbers.tolist()]
        apart = own(load_sevennet(), from_ase(parts))["energy"].sum()
        assert apart - energies[name] == pytest.approx(expected, rel=0.1)


def test_passes_the_contract_and_says_that_it_tells_mirror_images() -> None:
    # The package's networks are invariant under rotation only: a mirror image has other features.
    backbone = load_sevennet()
    structures = [water(), oblique_cell()]
    report = validate_backbone(backbone, structures=structures)
    assert report.skipped == ("cell refused", "molecule refused", "reflection")
    # The check that the spec waives is one that this real model fails, by little.
    backbone.spec = replace(backbone.spec, mirror=True)
    others = [name for name in CHECK_NAMES if name != "reflection"]
    report = validate_backbone(backbone, structures=structures, skip=others, raise_on_failure=False)
    assert report.failed == ("reflection",), str(report)
    deviation = next(c.deviation for c in report.checks if c.name == "reflection")
    assert deviation is not None
    assert 1e-9 < deviation < 1e-3


def test_random_weights_of_any_size_pass_the_contract() -> None:
    random = load_backbone("sevennet", weights="random", seed=2, options=SMALL)
    assert (random.spec.n_features, random.spec.n_layers) == (8, 3)
    structures = [water(), silicon()]
    report = validate_backbone(random, structures=structures)  # type: ignore[arg-type]
    assert report.failed == ()
    assert report.skipped == ("cell refused", "molecule refused", "reflection")


def test_a_mirror_changes_what_harmonics_tell_and_nothing_else() -> None:
    left = ethanol()
    right = left.copy()  # type: ignore[no-untyped-call]
    right.positions *= -1
    for n_features, same in (([8, 4], False), ([8], True)):
        options = {**SMALL, "n_features": n_features}
        backbone: Any = load_backbone("sevennet", weights="random", options=options)
        first, second = backbone.double()(backbone.prepare(from_ase([left, right]))).node.chunk(2)
        assert torch.allclose(first, second, rtol=0, atol=1e-12) == same


def test_spec_says_what_was_loaded(backbone: Sevennet, checkpoint: str) -> None:
    spec = backbone.spec
    assert (spec.name, spec.sha256) == (
        "sevennet",
        sevennet_weights.CHECKPOINTS[checkpoint].sha256,
    )
    assert spec.checkpoint.startswith(checkpoint)
    assert (spec.n_features, spec.n_layers, spec.cutoff) == (128, 5, 5.0)
    assert (spec.periodic, spec.molecules, len(spec.elements)) == (True, True, 89)
    assert (spec.licence, "uncorrected" in spec.level_of_theory) == ("MIT", True)
    layers = [f"layer {k}" for k in range(5)]
    assert [name for name, _ in backbone.blocks()] == ["embedding", *layers]
    n_parameters = sum(p.numel() for p in backbone.parameters())
    unused_rows = 5 * 128
    assert n_parameters - unused_rows == {"7net-0": 842_440, "7net-l3i5": 1_171_144}[checkpoint]


def test_every_layer_and_every_pair_has_features(backbone: Sevennet) -> None:
    graph = backbone.prepare(from_ase([atoms for atoms in small_structures() if atoms.pbc.any()]))
    features = backbone(graph)
    assert [layer.shape[1] for layer in features.layers] == [128] * 5
    assert features.edge is not None
    assert features.edge.shape == (len(graph.edges["pairs"].idx_i), sum(backbone.config.n_features))
    # They tell surroundings apart, not distances only: pairs of one length in two places.
    chain = Atoms("H4", positions=[[0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 1.5, 0]])
    graph = backbone.prepare(from_ase(chain))
    edges = graph.edges["pairs"]
    of = {
        (i, j): k
        for k, (i, j) in enumerate(zip(edges.idx_i.tolist(), edges.idx_j.tolist(), strict=True))
    }
    found = backbone(graph).edge
    assert found is not None
    assert float((found[of[0, 1]] - found[of[1, 2]]).abs().max()) > 1e-3


def test_low_rank_adaptation_reaches_every_matrix() -> None:
    # The package's linear layers hold flat vectors, which would stay as they are.
    backbone: Any = load_backbone("sevennet", weights="random", options=SMALL)
    matrices = [p for _, block in backbone.blocks() for p in block if p.ndim == 2]
    assert sum(p.numel() for p in matrices) == sum(
        p.numel() for _, block in backbone.blocks() for p in block
    ) - len(backbone.frequencies)
    graph = backbone.prepare(from_ase([water(), silicon()]))
    before = backbone(graph).node.detach()
    model = AdaptedModel(backbone, [PropertyHead(Target("gap", "eV"), 8)])
    updates = [p for group in Lora(rank=2).apply(model)[:-2] for p in group.parameters]
    assert len(updates) == 2 * len(matrices)
    after = model.backbone(graph).node  # type: ignore[operator]
    torch.testing.assert_close(after, before)
    after.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in updates[::2])
    # The matrices mix channels within a degree, so that any update leaves the symmetries.
    generator = torch.Generator().manual_seed(0)
    for update in updates:
        update.data += 0.1 * torch.randn(update.shape, generator=generator)
    assert not torch.allclose(backbone(graph).node, before, rtol=0.01)
    others = [name for name in CHECK_NAMES if name not in {"rotation", "permutation", "forces"}]
    report = validate_backbone(backbone, structures=[water(), silicon()], skip=others)
    assert {check.status for check in report.checks if check.name not in others} == {"passed"}


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (bulk("Rn", "fcc", a=6.0), "`sevennet` does not know Rn, found in structure `it`"),
        (Atoms("CO", positions=[[0, 0, 0], [0, 0, 1e-5]]), "atoms 0 and 1 are .* apart"),
        (Atoms("C", pbc=True), "linearly dependent in structure `it`"),
        (Atoms("C", positions=[[0, np.nan, 0]]), "not finite in structure `it`"),
    ],
)
def test_what_it_cannot_treat_is_refused_in_one_line(atoms: Atoms, message: str) -> None:
    with pytest.raises(TetherError, match=message) as caught:
        load_backbone("sevennet", weights="random", options=SMALL).prepare(
            from_ase(atoms, ids=["it"])
        )
    assert "\n" not in str(caught.value)


def test_random_weights_come_from_the_seed_and_need_no_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(package_weights, "find_package", None)
    state = torch.get_rng_state()
    first, again, other = (
        load_backbone("sevennet", weights="random", seed=s, options=SMALL) for s in (1, 1, 2)
    )
    assert torch.equal(state, torch.get_rng_state())
    weights = [dict(b.named_parameters()) for b in (first, again, other)]  # type: ignore[attr-defined]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert any(not torch.equal(weights[0][k], weights[2][k]) for k in weights[0])
    assert (first.spec.sha256, first.spec.checkpoint) == ("", "random")


def test_random_weights_are_distributed_as_the_package_does() -> None:
    from e3nn.math import normalize2mom
    from sevenn.model_build import build_E3_equivariant_model
    from sevenn.util import load_checkpoint

    settings = load_checkpoint("7net-0").config
    fresh = build_E3_equivariant_model(settings).state_dict()
    theirs = {k: v for k, v in fresh.items() if "weight" in k and v.numel() > 1000}
    assert all(float(v.std()) == pytest.approx(1.0, rel=0.1) for v in theirs.values())
    ours = load_backbone("sevennet", weights="random")
    for name, value in ours.named_parameters():  # type: ignore[attr-defined]
        if value.numel() > 1000:
            assert float(value.std()) == pytest.approx(1.0, rel=0.1), name
    frequencies = fresh["edge_embedding.basis_function.coeffs"]
    torch.testing.assert_close(ours.frequencies.detach(), frequencies)  # type: ignore[attr-defined]
    assert normalize2mom(torch.nn.functional.silu).cst == pytest.approx(SILU_NORM, rel=1e-12)


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ("pretrained", {"checkpoint": "7net-mf-0"}, "checkpoint '7net-mf-0' .*7net-0, 7net-l3i5"),
        ("pretrained", {"n_layers": 2}, "options .*n_layers.* expected checkpoint only"),
        ("random", {"n_layerz": 2}, "options .*n_layerz.* of backbone 'sevennet'"),
        ("random", {"n_features": [8] * 5}, "`n_features` is .*degree 0, 1, … at most 3"),
        ("random", {"n_features": [8, 0]}, "`n_features` is .*positive"),
        ("random", {"n_layers": 0}, "`n_layers` is 0"),
        ("random", {"cutoff_on": 5.0}, "`cutoff_on` is 5.0.*below the cutoff"),
    ],
)
def test_wrong_options_are_refused(weights: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TetherError, match=message):
        load_backbone("sevennet", weights=weights, options=options)
