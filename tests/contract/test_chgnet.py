"""CHGNet: our forward pass is the package's, to rounding, and passes the contract."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.io import read

from tether.backbones import chgnet_weights
from tether.backbones import weights as package_weights
from tether.backbones.chgnet import ELEMENTS, Chgnet, ChgnetConfig
from tether.backbones.load import load_backbone
from tether.data.read import read_structures
from tether.errors import TetherError
from tether.structures import AtomBatch, from_ase, to_ase
from tether.testing import validate_backbone
from tether.testing.structures import (
    beta_brass,
    rattled,
    silicon,
    skewed_silicon,
    small_structures,
    sodium_chloride,
    water,
)

pytest.importorskip("chgnet", reason="the extra chgnet is not installed")
# pymatgen, which only the package needs, warns about what it thinks of a structure.
pytestmark = pytest.mark.filterwarnings("ignore")

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
GPA = 160.21766208  # eV/Å³, the package's figure


@pytest.fixture(scope="module", params=list(chgnet_weights.CHECKPOINTS))
def checkpoint(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def backbone(checkpoint: str) -> Chgnet:
    return load_backbone("chgnet", options={"checkpoint": checkpoint})  # type: ignore[return-value]


@pytest.fixture(scope="module")
def reference(checkpoint: str) -> Any:
    return package_model(checkpoint)


def package_model(checkpoint: str) -> Any:
    from chgnet.model import CHGNet

    with redirect_stdout(StringIO()):
        return CHGNet.load(model_name=checkpoint, use_device="cpu", verbose=False)


def perovskite() -> Atoms:
    """BaTiO3, four elements' worth of bond lengths, bonds and angles of all kinds."""
    fractions = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    atoms = Atoms("BaTiO3", scaled_positions=fractions, cell=[4.0, 4.05, 4.1], pbc=True)
    return rattled(atoms, seed=8)


def oblique_cell() -> Atoms:
    """The same crystal as β-brass in a long and very oblique cell."""
    return make_supercell(beta_brass(), [[1, 0, 0], [3, 1, 0], [-2, 4, 1]])  # type: ignore[no-untyped-call]


def crystals() -> list[Atoms]:
    """Small cells with many images, skewed cells, one atom bonded to itself, and large ones."""
    built = [silicon(), sodium_chloride(), beta_brass(), skewed_silicon(), perovskite()]
    built += [bulk("Cu"), rattled(bulk("Zn")), oblique_cell()]
    return [*built, rattled(bulk("Au", cubic=True) * (2, 2, 1)), bulk("He", "fcc", a=4.2)]


def own(backbone: Chgnet, batch: AtomBatch) -> dict[str, np.ndarray]:
    graph = backbone.prepare(batch).differentiable()
    features = backbone(graph)
    energy, forces, stress = backbone.energy_forces(graph, features)
    assert stress is not None
    values = {"energy": energy, "forces": forces, "stress": stress, "node": features.node}
    return {name: value.detach().numpy() for name, value in values.items()}


def package(model: Any, frames: list[Atoms], *, converter: Any = None) -> dict[str, np.ndarray]:
    """The package's own prediction, structure by structure, in our units."""
    from pymatgen.io.ase import AseAtomsAdaptor

    graphs = [
        (converter or model.graph_converter)(AseAtomsAdaptor.get_structure(a)) for a in frames
    ]
    found = model.predict_graph(graphs, task="efs", batch_size=1)
    found = found if isinstance(found, list) else [found]
    return {
        "energy": np.array([float(f["e"]) * len(a) for f, a in zip(found, frames, strict=True)]),
        "forces": np.concatenate([f["f"] for f in found]),
        "stress": np.stack([f["s"] for f in found]) / GPA,
    }


def assert_agree(backbone: Chgnet, reference: Any, frames: list[Atoms]) -> None:
    ours, theirs = own(backbone, from_ase(frames)), package(reference, frames)
    # Both in single precision, on positions that the package rounds in fractional coordinates:
    # 1e-6 Å times force constants of up to 100 eV/Å². In double, forces agree to 1e-8 eV/Å.
    per_atom = np.array([len(a) for a in frames])
    np.testing.assert_allclose(ours["energy"] / per_atom, theirs["energy"] / per_atom, atol=1e-5)
    np.testing.assert_allclose(ours["forces"], theirs["forces"], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(ours["stress"], theirs["stress"], rtol=1e-4, atol=2e-5)
    assert np.abs(ours["forces"]).max() > 0.1


def test_agrees_with_the_package_on_built_crystals(backbone: Chgnet, reference: Any) -> None:
    assert_agree(backbone, reference, crystals())


@pytest.mark.parametrize("name", ["mptrj-random-1k", "alexandria-random-1k", "random-TP"])
def test_agrees_with_the_package_on_force_field_data(
    backbone: Chgnet, reference: Any, name: str
) -> None:
    path = SHARED / "forcefield" / f"{name}.xyz.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here: real data come with the workplace, not the package")
    known = set(backbone.spec.elements)
    frames = read(path, index="3:400:20", format="extxyz")
    frames = [a for a in frames if len(a) < 20 and set(a.numbers.tolist()) <= known]
    # Of relaxed crystals, forces are small: moved a little, an error would show.
    assert_agree(backbone, reference, [rattled(atoms) for atoms in frames[:4]])


@pytest.mark.parametrize("name", ["dielectric", "log_gvrh", "jdft2d"])
def test_agrees_with_the_package_on_matbench(backbone: Chgnet, reference: Any, name: str) -> None:
    path = SHARED / "matbench" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not here: real data come with the workplace, not the package")
    batch = next(iter(read_structures(path))).batch
    small = torch.nonzero(batch.counts <= 12).flatten()
    frames = to_ase(batch.select(small[:: len(small) // 4]))
    assert_agree(backbone, reference, [rattled(atoms) for atoms in frames])


def test_in_double_precision_agrees_to_rounding() -> None:
    model = package_model("0.3.0").double()
    converter = model.graph_converter
    ours = load_backbone("chgnet")

    def exactly(structure: Any) -> Any:
        graph = converter(structure)
        graph.atom_frac_coord = torch.tensor(structure.frac_coords, requires_grad=True)
        graph.lattice = torch.tensor(structure.lattice.matrix, requires_grad=True)
        graph.neighbor_image = graph.neighbor_image.double()
        return graph

    # The table of element energies is applied in single precision whatever the model is in.
    table, model.composition_model = model.composition_model, None
    energies = table.fc.weight[0].detach().numpy()
    frames = crystals()
    theirs = package(model, frames, converter=exactly)
    theirs["energy"] += [energies[atoms.numbers - 1].sum() for atoms in frames]
    found = own(ours.double(), from_ase(frames))  # type: ignore[attr-defined]
    for name, tolerance in {"energy": 1e-7, "forces": 1e-7, "stress": 1e-8}.items():
        np.testing.assert_allclose(found[name], theirs[name], atol=tolerance, rtol=1e-7)


def test_an_atom_without_neighbours_has_the_energy_of_the_package() -> None:
    model = package_model("0.3.0")
    from chgnet.graph import CrystalGraphConverter

    # By default the package refuses such structures, and its fast converter reads out of bounds.
    converter = CrystalGraphConverter(algorithm="legacy", on_isolated_atoms="ignore")
    chain = Atoms("SiHSi", positions=[[0, 0, 0], [0, 0, 10], [0, 0, 2.3]], cell=[20] * 3, pbc=True)
    theirs = package(model, [chain], converter=converter)
    ours = own(load_backbone("chgnet"), from_ase([chain, Atoms("H", cell=[20] * 3, pbc=True)]))  # type: ignore[arg-type]
    np.testing.assert_allclose(ours["energy"][0], theirs["energy"][0], atol=1e-5)
    assert np.isfinite(ours["energy"][1])
    assert not ours["forces"][3].any()
    np.testing.assert_array_equal(ours["node"][1], ours["node"][3])


def test_passes_the_contract() -> None:
    structures = [silicon(), sodium_chloride(), beta_brass(), oblique_cell()]
    report = validate_backbone(load_backbone("chgnet"), structures=structures)  # type: ignore[arg-type]
    assert report.failed == ()
    assert report.skipped == ("cell refused",)


def test_random_weights_pass_the_contract() -> None:
    random = load_backbone("chgnet", weights="random", seed=2)
    report = validate_backbone(random, structures=[sodium_chloride(), silicon()])  # type: ignore[arg-type]
    assert report.failed == ()


def test_the_jump_of_the_oldest_checkpoint_is_found() -> None:
    # Its bias acts on every bond as soon as there is one angle (chgnet's issue 79): a real model
    # that must fail at the bond cutoff, and nowhere else.
    report = validate_backbone(
        load_backbone("chgnet", options={"checkpoint": "0.2.0"}),  # type: ignore[arg-type]
        structures=[beta_brass()],
        raise_on_failure=False,
    )
    assert set(report.failed) == {
        "smooth at the cutoff",
        "smooth derivative at the cutoff",
        "smooth edge features",
    }
    assert "at 3.000 Å" in str(report)
    assert "at 5.000 Å" not in str(report)


def test_spec_says_what_was_loaded(backbone: Chgnet, checkpoint: str) -> None:
    pinned = chgnet_weights.CHECKPOINTS[checkpoint]
    spec = backbone.spec
    assert (spec.name, spec.sha256) == ("chgnet", pinned.sha256)
    assert spec.checkpoint.startswith(checkpoint)
    assert (spec.n_features, spec.n_layers, spec.cutoff) == (64, 4, pinned.config.cutoff)
    n_elements = 88 if checkpoint == "r2scan" else 89
    assert (spec.periodic, spec.molecules, len(spec.elements)) == (True, False, n_elements)
    assert "BSD" in spec.licence
    assert ("r2SCAN" in spec.level_of_theory) == (checkpoint == "r2scan")
    # The name of the file ends in the errors, meV and meV/Å.
    assert spec.errors is not None
    named = f"_e{1000 * spec.errors.energy:.0f}f{1000 * spec.errors.force:.0f}"
    assert abs(spec.errors.force - 0.03846) < 1e-9 or named in pinned.path
    layers = [f"layer {k}" for k in range(4)]
    assert [name for name, _ in backbone.blocks()] == ["embedding", *layers]


def test_the_elements_are_those_that_were_trained() -> None:
    # The fit of the element energies left those of absent elements at zero.
    table = package_model("r2scan").composition_model.fc.weight[0]
    untrained = {z for z in range(1, 95) if abs(float(table[z - 1])) < 1e-4}
    r2scan = load_backbone("chgnet", options={"checkpoint": "r2scan"}).spec.elements
    assert untrained == set(range(1, 95)) - set(r2scan)
    assert set(ELEMENTS) - set(r2scan) == {70}


def test_every_layer_and_every_pair_has_features(backbone: Chgnet) -> None:
    graph = backbone.prepare(from_ase(crystals()))
    features = backbone(graph)
    assert [layer.shape[1] for layer in features.layers] == [64] * 4
    assert features.edge is not None
    assert features.edge_distance is not None
    assert features.edge.shape == (len(graph.edges["pairs"].idx_i), 64)
    assert 3.0 < float(features.edge_distance.max()) < backbone.spec.cutoff


def test_a_molecule_is_refused_by_name() -> None:
    batch = from_ase([silicon(), water()], ids=["crystal", "molecule"])
    message = "`chgnet` knows crystals only, but structure `molecule` has no periodic direction"
    with pytest.raises(TetherError, match=message):
        load_backbone("chgnet", weights="random").prepare(batch)


def test_an_element_without_training_data_is_refused() -> None:
    with pytest.raises(TetherError, match="does not know Rn, found in structure `noble`"):
        load_backbone("chgnet", weights="random").prepare(
            from_ase(bulk("Rn", "fcc", a=6.0), ids=["noble"])
        )


def test_random_weights_come_from_the_seed_and_need_no_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(package_weights, "find_package", None)
    state = torch.get_rng_state()
    first, again, other = (load_backbone("chgnet", weights="random", seed=s) for s in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    weights = [dict(b.named_parameters()) for b in (first, again, other)]  # type: ignore[attr-defined]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert any(not torch.equal(weights[0][k], weights[2][k]) for k in weights[0])
    assert (first.spec.sha256, first.spec.checkpoint) == ("", "random")


def test_random_weights_are_distributed_as_the_package_does() -> None:
    from chgnet.model import CHGNet

    with redirect_stdout(StringIO()):
        theirs = chgnet_weights._from_package(CHGNet().state_dict(), ChgnetConfig())
    ours = load_backbone("chgnet", weights="random").state_dict()  # type: ignore[attr-defined]
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"reference"}:
        assert ours[name].shape == theirs[name].shape, name
        if ours[name].numel() > 1000:
            assert float(ours[name].std()) == pytest.approx(float(theirs[name].std()), rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "0.4.0"}, "checkpoint '0.4.0' .*expected one of 0.3.0, 0.2.0, r2scan"),
        ({"n_layers": 2}, "options .*n_layers.* of backbone 'chgnet'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TetherError, match=message):
        load_backbone("chgnet", options=options)


def test_all_fixed_crystals_are_known() -> None:
    frames = [atoms for atoms in small_structures() if atoms.pbc.any()]
    assert load_backbone("chgnet", weights="random").prepare(from_ase(frames)).n_systems == 4
