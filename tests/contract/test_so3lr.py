"""SO3LR: our forward pass is the package's, to rounding, and passes the contract."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from tether.backbones import so3lr
from tether.backbones.load import load_backbone
from tether.backbones.so3krates import (
    LONG_RANGE_CUTOFF,
    So3krates,
    So3kratesConfig,
    globals_restored,
    package_folder,
)
from tether.data.read import read_structures
from tether.errors import TetherError
from tether.graph import neighbour_edges
from tether.structures import AtomBatch, from_ase
from tether.testing import validate_backbone

pytest.importorskip("so3krates_torch", reason="the extra so3lr is not installed")
# The package and its own dependencies warn about deprecated calls, at import and in forward.
pytestmark = pytest.mark.filterwarnings("ignore")

UNUSED = [
    "*charge_embedding*",
    "*spin_embedding*",
    "*transformers.0.filter_net_*.mlp_ev.0.weight",
]
QM9 = Path(__file__).parents[2].parent / "shared" / "data" / "qm9_gap" / "val.npz"


@pytest.fixture(scope="module")
def backbone() -> So3krates:
    return load_backbone("so3lr")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def reference() -> Any:
    with globals_restored():
        path = package_folder() / "pretrained" / "so3lr" / "so3lr.model"
        model = torch.load(path, map_location="cpu", weights_only=False)
    model.r_max_lr, model.dispersion_energy_cutoff_lr_damping = LONG_RANGE_CUTOFF, 2.0
    return model


def package_forward(model: Any, batch: AtomBatch) -> dict[str, torch.Tensor]:
    """The package's own forward pass, on full neighbour lists."""
    short = neighbour_edges(batch, 4.5, full=True)
    long = neighbour_edges(batch, LONG_RANGE_CUTOFF, full=True)
    n = batch.n_systems
    features: list[torch.Tensor] = []
    hook = model.euclidean_transformers[-1].register_forward_hook(
        lambda _module, _inputs, output: features.append(output[0].detach())
    )
    one_hot = torch.nn.functional.one_hot(batch.numbers - 1, model.num_elements).float()
    try:
        output = model(
            {
                "positions": batch.positions.float(),
                "cell": torch.zeros(n * 3, 3),
                "batch": batch.system_idx,
                "ptr": batch.ptr,
                "edge_index": torch.stack([short.idx_i, short.idx_j]),
                "shifts": short.shift.float(),
                "unit_shifts": short.shift.float(),
                "edge_index_lr": torch.stack([long.idx_i, long.idx_j]),
                "shifts_lr": long.shift.float(),
                "unit_shifts_lr": long.shift.float(),
                "node_attrs": one_hot,
                "atomic_numbers": batch.numbers,
                "total_charge": batch.charge.float(),
                "total_spin": batch.spin.float() / 2,  # S, from unpaired electrons
                "head": torch.zeros(n, dtype=torch.long),
            }
        )
    finally:
        hook.remove()
    return {"energy": output["energy"], "forces": output["forces"], "node": features[0]}


def own_forward(backbone: So3krates, batch: AtomBatch) -> dict[str, torch.Tensor]:
    graph = backbone.prepare(batch).differentiable()
    features = backbone(graph)
    energy, forces, _ = backbone.energy_forces(graph, features)
    return {"energy": energy, "forces": forces, "node": features.node.detach()}


def assert_agree(backbone: So3krates, reference: Any, batch: AtomBatch) -> None:
    ours, theirs = own_forward(backbone, batch), package_forward(reference, batch)
    # Single precision: an energy is rounded to one part in 2^23, and is a sum in another order.
    torch.testing.assert_close(ours["energy"], theirs["energy"].detach(), rtol=4e-7, atol=2e-5)
    torch.testing.assert_close(ours["forces"], theirs["forces"].detach(), rtol=1e-5, atol=3e-5)
    torch.testing.assert_close(ours["node"], theirs["node"], rtol=1e-5, atol=3e-5)
    assert float(ours["forces"].abs().max()) > 0.1


def rattled(*names: str) -> list[Atoms]:
    rng = np.random.default_rng(0)
    frames = [molecule(name) for name in names]
    for atoms in frames:
        atoms.info.clear()
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
    return frames


def test_agrees_with_the_package_on_ase_molecules(backbone: So3krates, reference: Any) -> None:
    names = ("H2O", "CH3CH2OH", "C6H6", "CH4", "CH3SH", "PH3", "CH3Cl", "HF", "C4H4NH", "CO2")
    assert_agree(backbone, reference, from_ase(rattled(*names)))


def test_agrees_with_the_package_beyond_the_short_cutoff(
    backbone: So3krates, reference: Any
) -> None:
    far = [
        Atoms("OHHOHH", positions=np.vstack([m.positions, m.positions + [0, 0, shift]]))
        for m in rattled("H2O", "H2O")
        for shift in (5.0, 9.5, 11.5, 20.0)
    ]
    assert_agree(backbone, reference, from_ase(far))


def test_agrees_with_the_package_on_charges_and_open_shells(
    backbone: So3krates, reference: Any
) -> None:
    frames = rattled("NH3", "H2O", "CH3", "HCOOH", "NO")
    for atoms, (charge, spin) in zip(
        frames, ((1, 0), (-1, 0), (0, 1), (-1, 2), (0, 1)), strict=True
    ):
        atoms.info |= {"charge": charge, "spin": spin}
    charged, neutral = from_ase(frames), from_ase(list(rattled("NH3", "H2O")))
    assert_agree(backbone, reference, charged)
    moved = own_forward(backbone, charged)["energy"][:2] - own_forward(backbone, neutral)["energy"]
    assert float(moved.abs().min()) > 1e-2  # charge is not ignored


def test_agrees_with_the_package_on_qm9(backbone: So3krates, reference: Any) -> None:
    if not QM9.exists():
        pytest.skip(f"{QM9} is not here: real data come with the workplace, not the package")
    chunk = next(iter(read_structures(QM9)))
    assert_agree(backbone, reference, chunk.batch.select(torch.arange(0, 4000, 100)))


def test_passes_the_contract(backbone: So3krates) -> None:
    report = validate_backbone(backbone, unused=UNUSED)
    assert report.failed == ()
    crystals_only = {"lattice translation", "choice of cell", "supercell", "stress"}
    assert set(report.skipped) == {"molecule refused", *crystals_only}


def test_a_small_random_network_passes_the_contract() -> None:
    config = So3kratesConfig(n_features=32, n_layers=2, n_heads=2, degrees=(1, 2), n_radial=8)
    report = validate_backbone(So3krates(config, seed=3), unused=UNUSED)
    assert report.failed == ()


def test_spec_says_what_was_loaded(backbone: So3krates) -> None:
    assert (backbone.spec.name, backbone.spec.sha256) == ("so3lr", so3lr.SO3LR_SHA256)
    assert (backbone.spec.n_features, backbone.spec.n_layers, backbone.spec.cutoff) == (128, 3, 4.5)
    assert [name for name, _ in backbone.blocks()] == ["embedding", "layer 0", "layer 1", "layer 2"]


def test_the_converted_weights_are_those_of_the_pickle(
    backbone: So3krates, reference: Any, tmp_path: Path
) -> None:
    again = so3lr.load_so3lr(cache=tmp_path / "cache")
    theirs = dict(reference.named_parameters())
    for name, parameter in again.network.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
        assert torch.equal(parameter, dict(backbone.network.named_parameters())[name])


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_with_another_sha256_is_refused_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package" / "pretrained" / "so3lr"
    folder.mkdir(parents=True)
    opened = tmp_path / "opened"
    (folder / "so3lr.model").write_bytes(pickle.dumps(Bomb(opened)))
    monkeypatch.setattr(so3lr, "package_folder", lambda: tmp_path / "package")
    with pytest.raises(TetherError, match=r"has sha256 .*expected b5145564911f.*never opened"):
        so3lr.load_so3lr(cache=tmp_path / "cache")
    assert not opened.exists()
    assert not (tmp_path / "cache").exists()
    pickle.loads((folder / "so3lr.model").read_bytes())  # the bomb is a real one
    assert opened.exists()


def test_one_changed_byte_is_another_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package" / "pretrained" / "so3lr"
    folder.mkdir(parents=True)
    shutil.copy(package_folder() / "pretrained" / "so3lr" / "so3lr.model", folder)
    monkeypatch.setattr(so3lr, "package_folder", lambda: tmp_path / "package")
    so3lr.weight_file(tmp_path / "good")
    content = bytearray((folder / "so3lr.model").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "so3lr.model").write_bytes(bytes(content))
    with pytest.raises(TetherError, match="an unknown pickle is never opened"):
        so3lr.weight_file(tmp_path / "bad")


@pytest.mark.parametrize("damage", ["truncated", "tensors missing"])
def test_a_damaged_cache_is_refused(damage: str, tmp_path: Path) -> None:
    from tether.serialization import load_tensors, save_tensors

    path = so3lr.weight_file(tmp_path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        save_tensors(path, dict(list(load_tensors(path).items())[1:]))
    with pytest.raises(TetherError, match=r"cannot be read|differ in 1 tensors"):
        so3lr.load_so3lr(cache=tmp_path)


def test_random_weights_come_from_the_seed_and_leave_the_process_alone() -> None:
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    first, again, other = (load_backbone("so3lr", weights="random", seed=s) for s in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_default_dtype() == dtype
    weights = [dict(b.named_parameters()) for b in (first, again, other)]  # type: ignore[attr-defined]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert any(not torch.equal(weights[0][k], weights[2][k]) for k in weights[0])
    assert first.spec.sha256 == ""


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("so3lr", {"n_layers": 2}, "options .* of backbone 'so3lr'; expected none"),
        ("so3krates", {"n_layerz": 2}, "options .*n_layerz"),
        ("so3krates", {"n_features": 30}, "`n_features` is 30; expected a multiple of 4"),
        ("so3krates", {"n_features": "32"}, "options .* of backbone 'so3krates'"),
        ("tiny", {"n_features": -1}, "options .* of backbone 'tiny'"),
        (
            "so3lrr",
            {},
            r"unknown backbone 'so3lrr'; expected one of tether-s, so3lr, so3krates, .*, tiny",
        ),
    ],
)
def test_wrong_names_and_options_are_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TetherError, match=message):
        load_backbone(name, options=options)


def test_gradients_are_finite_where_an_atom_has_lost_its_volume() -> None:
    config = So3kratesConfig(n_features=32, n_layers=1, n_heads=2, degrees=(1, 2), n_radial=8)
    small = So3krates(config, seed=3)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if "hirshfeld" in name:
                parameter.zero_()
    graph = small.prepare(from_ase([molecule("CH3CH2OH")])).differentiable()
    _, forces, _ = small.energy_forces(graph, small(graph), create_graph=True)
    moving = list(small.network.euclidean_transformers.parameters())
    gradients = torch.autograd.grad(forces.square().sum(), moving, allow_unused=True)
    assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients)
