"""``tether doctor``: whether this environment can do what it should, in words."""

from __future__ import annotations

import importlib.util
import json
import os

import typer
from rich.console import Console
from rich.markup import escape

from tether.cli.options import JsonOption

__all__ = ["doctor_command"]

#: Import name → (what it brings, the extra).
_OPTIONAL = {
    "so3krates_torch": ("backbone so3lr", "so3lr"),
    "chgnet": ("backbone chgnet", "chgnet"),
    "torchmdnet": ("backbone tensornet", "tensornet"),
    "sevenn": ("backbone sevennet", "sevennet"),
    "qm9pack": ("the QM9 data set", "qm9"),
    "tblite": ("GFN2-xTB labels", "xtb"),
    "ray": ("labels by a cluster", "ray"),
    "torchjd": ("balance surgery", "surgery"),
    "openTSNE": ("t-SNE pictures of features", "collapse"),
    "ot": ("exact Wasserstein distances", "collapse"),
    "rdkit": ("bonds, functional groups, scaffolds", "collapse"),
    "pymatgen": ("descriptors of composition", "splits"),
    "featomic": ("descriptors of structure", "splits"),
    "spglib": ("space groups", "splits"),
}


#: Backbone → its name in words, and the import name of the package that brings its weights.
_WEIGHTS = (
    ("so3lr", "SO3LR", "so3krates_torch"),
    ("chgnet", "CHGNet", "chgnet"),
    ("sevennet", "SevenNet", "sevenn"),
)


def doctor_command(*, as_json: JsonOption = False) -> None:
    """Check packages, weights and device; exit code 1 when something is broken."""
    findings = [*_packages(), *(_weights(*row) for row in _WEIGHTS), _compiler(), _device()]
    if as_json:
        keys = ("state", "what", "detail")
        typer.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in findings]))
    else:
        console = Console(highlight=False)
        colours = {"ok": "green", "missing": "yellow", "broken": "red"}
        for state, what, detail in findings:
            console.print(f"[{colours[state]}]{state:8}[/] {escape(f'{what}: {detail}')}")
    if any(state == "broken" for state, _, _ in findings):
        raise typer.Exit(1)


def _packages() -> list[tuple[str, str, str]]:
    from tether.run import environment

    versions = environment()
    rows = [("ok", "tether", f"{versions['tether']} on Python {versions['python']}")]
    for module, (what, extra) in _OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            rows.append(("missing", what, f"pip install 'tether[{extra}]'"))
        else:
            rows.append(("ok", what, versions.get(module.replace("_", "-")) or "installed"))
    return rows


def _weights(backbone: str, title: str, module: str) -> tuple[str, str, str]:
    from tether.errors import TetherError

    what = f"{title} weights"
    if importlib.util.find_spec(module) is None:
        return "missing", what, f"come with the package {module.replace('_', '-')}"
    try:
        from tether.backbones.load import load_backbone

        spec = load_backbone(backbone).spec
    except (TetherError, ImportError, RuntimeError, OSError) as error:
        return "broken", what, str(error)
    return "ok", what, f"sha256 {spec.sha256[:12]}… loaded"


def _compiler() -> tuple[str, str, str]:
    from tether.errors import TetherError
    from tether.training.compiled import find_compiler

    try:
        return "ok", "training.compile", find_compiler()
    except TetherError:
        return "missing", "training.compile", "needs a C++ compiler: g++ or clang++"


def _device() -> tuple[str, str, str]:
    import torch

    where = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return "ok", "device", f"{where}; {os.cpu_count()} cores; torch {torch.__version__}"
