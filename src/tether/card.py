"""`model_card`: what pretrained weights are, what they were made from and what they are not for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ase.data import chemical_symbols

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tether.backbones.protocol import BackboneSpec

__all__ = ["model_card"]


_PAGE = """# {name}

- architecture: {architecture}, {about[n_parameters]:,} parameters, cutoff {spec.cutoff:g} Å,
  {spec.n_features} features
- elements: {elements}
- objective: {about[objective][kind]}, {about[n_steps]:,} steps (the best on validation:
  {about[best_step]:,})
- level of theory of its energy head: {about[level_of_theory]}
- licence of the weights: {about[licence]}

## Data

| data set | structures | level of theory | fingerprint |
|---|---|---|---|
{sets}

## Errors on structures that it was not trained on

| set | structures | measure | value |
|---|---|---|---|
{errors}

Forces in eV/Å, energies in eV an atom (differences: the mean error is taken out), stress in eV/Å³,
denoising in units of the noise's variance. The validation set picked the step.

## Not for

- elements other than {elements};
- structures unlike the data above: other bonding, larger distortions, {unlike};
- charges and open shells, unless the data have them;
- {energies}
"""


def model_card(
    name: str, spec: BackboneSpec, about: Mapping[str, Any], *, architecture: str
) -> str:
    """A page about a pretrained backbone, after M. Mitchell et al., arXiv 1810.03993.

    Parameters
    ----------
    name : str
        Title.
    spec : BackboneSpec
        Of the architecture.
    about : mapping
        As `pretrain` puts it into the checkpoint.
    architecture : str
        Name that `load_backbone` takes.

    Returns
    -------
    str
        Markdown.
    """
    elements = " ".join(chemical_symbols[z] for z in about["elements"])
    sets = [
        f"| {one['name']} | {one['n_systems']:,} | {one['level_of_theory']} | "
        f"{one['fingerprint'][:16]} |"
        for one in about["datasets"]
    ]
    errors = [
        f"| {part} | {about['n_held_out'][part]:,} | {measure} | {value:.4g} |"
        for part, found in about["errors"].items()
        for measure, value in found.items()
    ]
    energies = (
        "total energies: they count from a fit of each element's share, kept in the file."
        if about["energy_offsets"]
        else "energies and forces: its energy head was not trained."
    )
    return _PAGE.format(
        name=name,
        architecture=architecture,
        spec=spec,
        about=about,
        elements=elements,
        sets="\n".join(sets),
        errors="\n".join(errors),
        unlike="crystals" if not spec.periodic else "other densities",
        energies=energies,
    )
