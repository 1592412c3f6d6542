"""Configuration: closed, typed, and wrong input is said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tether.config import Config, load_config
from tether.errors import TetherError
from tether.inputs import AdaptInputs, BackboneChoice, HeadChoice
from tether.jobs import plan
from tether.recipe import RECIPES, named_recipe
from tether.training.settings import TrainingSettings

BASE = ["store=s.arrow", "split=split.json", "targets=[gap]"]


def test_overrides_alone_make_a_config_with_defaults() -> None:
    config = load_config(None, BASE)
    assert (config.store, config.targets) == (Path("s.arrow"), ("gap",))
    assert config.seeds == (0, 1, 2)
    assert [p.name for p in config.points()] == ["scratch", "probe", "full", "layerwise", "mft"]


def test_overrides_win_over_the_file_at_every_level(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("store: a\nsplit: b\ntargets: [gap]\ntraining: {lr: 1e-2, batch_size: 4}\n")
    config = load_config(
        path, ["training.lr=1e-3", "backbone.options.n_features=16", "head.pooling=max"]
    )
    assert (config.settings().lr, config.settings().batch_size) == (1e-3, 4)
    assert config.backbone_choice().options == {"n_features": 16}
    assert config.head_choice().pooling == "max"


def test_numbers_with_exponents_and_words_with_an_e_are_read_as_meant() -> None:
    config = load_config(None, [*BASE, "training.property_steps=1e3", "training.loss=huber"])
    assert config.settings().property_steps == 1000
    assert config.settings().loss == "huber"
    assert load_config(None, [*BASE, "recipes=[probe]"]).recipes == ("probe",)


def test_round_trip_through_yaml(tmp_path: Path) -> None:
    recipes = "recipes=[probe, {base: mft, name: strong, forcefield_weight: 1.0}]"
    config = load_config(None, [*BASE, recipes, "training.lr=1e-3"])
    path = tmp_path / "c.yaml"
    path.write_text(config.to_yaml())
    again = load_config(path)
    assert again == config
    assert again.points() == config.points()


@pytest.mark.parametrize("name", RECIPES)
def test_the_config_of_a_run_gives_its_arguments_back(name: str, tmp_path: Path) -> None:
    recipe = named_recipe(name, name="own")
    inputs = AdaptInputs(Path("s.arrow"), Path("split.json"), ("gap",), auxiliary=Path("aux.arrow"))
    settings = TrainingSettings(property_steps=7, betas=(0.8, 0.9))
    backbone, head = BackboneChoice("tiny", {"n_features": 8}), HeadChoice("max", 16)
    config = Config.of_run(inputs, recipe, settings, seed=3, backbone=backbone, head=head)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    again = load_config(tmp_path / "config.yaml")
    assert (again.inputs(), again.points(), again.settings()) == (inputs, [recipe], settings)
    assert (again.backbone_choice(), again.head_choice(), again.seeds) == (backbone, head, (3,))


def test_a_recipe_can_be_changed_in_place() -> None:
    config = load_config(None, [*BASE, "recipes=[{base: mft, name: strong, forcefield_weight: 1}]"])
    (point,) = config.points()
    assert (point.name, point.forcefield, point.forcefield_weight) == ("strong", True, 1.0)


def test_single_keeps_the_fields_of_a_changed_recipe() -> None:
    config = load_config(
        None, [*BASE, "recipes=[full, {base: mft, name: strong, forcefield_weight: 0.3}]"]
    )
    one = config.single("strong", 4)
    assert (one.points(), one.seeds) == ([config.points()[1]], (4,))
    assert (
        config.single("probe", 0).points()[0].movement == "frozen"
    )  # a named one, not in the list
    with pytest.raises(TetherError, match="unknown recipe 'strng'"):
        config.single("strng", 0)


def test_what_the_config_names_is_run() -> None:
    one = load_config(None, [*BASE, "recipes=[{base: probe, name: mine}]", "seeds=[3, 4]"]).single()
    assert ([point.name for point in one.points()], one.seeds) == (["mine"], (3,))
    plain = load_config(None, BASE).single()
    assert ([point.name for point in plain.points()], plain.seeds) == (["mft"], (0,))
    several = load_config(None, [*BASE, "recipes=[full, mft]"])
    with pytest.raises(TetherError, match="has 2 recipes, .* one of full, mft; fix: add --recipe"):
        several.single()


def test_a_reference_need_not_be_run() -> None:
    config = load_config(None, [*BASE, "recipes=[mft]", "references=[scratch, probe]"])
    assert config.references == ("scratch", "probe")
    # As in the config of one run out of a comparison.
    assert load_config(None, [*BASE, "recipes=[mft]", "references=[own]"]).references == ("own",)


def test_a_recipe_can_have_a_backbone_of_its_own() -> None:
    other = "{base: scratch, name: other, backbone: {name: tiny, options: {n_layers: 1}}}"
    config = load_config(None, [*BASE, f"recipes=[full, {other}]"])
    assert [point.name for point in config.points()] == ["full", "other"]
    assert config.single("full", 0).backbone_choice().name == config.backbone.name
    one = config.single("other", 0)
    assert one.backbone_choice() == BackboneChoice("tiny", {"n_layers": 1})
    # The run's own config says it once, and can be read again.
    assert one.recipes == ({"base": "scratch", "name": "other"},)
    jobs = plan(config, Path("out"))
    assert [job.config.backbone.name for job in jobs[:2]] == [config.backbone.name, "tiny"]


def test_the_seed_in_a_backbones_name() -> None:
    other = "{base: full, name: own, backbone: {name: 'made-{seed}/backbone.safetensors'}}"
    config = load_config(None, [*BASE, f"recipes=[full, {other}]", "seeds=[0, 4]"])
    names = [job.config.backbone.name for job in plan(config, Path("out"))]
    assert names[1::2] == ["made-0/backbone.safetensors", "made-4/backbone.safetensors"]
    assert set(names[::2]) == {config.backbone.name}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["recipes=[{base: full, backbone: tiny}]"],
            r"`backbone` of a recipe is 'tiny'; .*fix: write backbone: \{name: tiny\}",
        ),
        (
            ["recipes=[{base: full, backbone: {nam: tiny}}]"],
            r"unknown key 'nam' in backbone of a recipe; .*did you mean 'name'\?",
        ),
        (["outside=[forest]"], r"`outside.0` is 'forest'"),
        (
            ["recipes=[{base: full, name: fingerprint}]", "outside=[fingerprint]"],
            r"`recipes and outside` is \['fingerprint', 'fingerprint'\]; expected each once",
        ),
        (
            ["recipes=[full, {base: mft, name: strong}]", "references=[full, strng]"],
            r"`references` names 'strng', which is no recipe; .* full, strong, .* mean 'strong'\?",
        ),
        (["stor=s"], r"unknown key 'stor' in config; .*did you mean 'store'\?"),
        (["training.lrr=1"], r"unknown key 'lrr' in training; .*did you mean 'lr'\?"),
        (["backbone.nam=x"], r"unknown key 'nam' in config.backbone; .*did you mean 'name'\?"),
        (["head.poolin=max"], r"unknown key 'poolin' in config.head; .*did you mean 'pooling'\?"),
        (["zzz=1"], r"unknown key 'zzz' in config; .*fix: remove it"),
        (["recipes=[{base: mft, decai: 1}]"], r"unknown key 'decai' in recipe 'mft'; .*'decay'"),
        (["training.property_steps=many"], r"`property_steps` is 'many'; expected a valid integer"),
        (["training.property_steps=1.5"], r"`property_steps` is 1.5; expected a valid integer"),
        (["training.property_steps=0"], r"`training.property_steps` is 0; expected a positive"),
        (["training.lr=-1"], r"^`training.lr` is -1.0; expected a positive number"),
        (["training.lr=nan"], r"`training.lr` is nan; expected a positive number"),
        (["training.lr=1e999"], r"`training.lr` is inf"),
        (["training.betas=[0.9, 1.5]"], r"`training.betas` is \[0.9, 1.5\]"),
        (["training.clip_norm=-1"], r"`training.clip_norm` is -1.0"),
        (["training.patience=-1"], r"`training.patience` is -1"),
        (["training.max_atoms=0"], r"`training.max_atoms` is 0"),
        (["training.warmup_fraction=2"], r"`training.warmup_fraction` is 2.0; expected .*\[0, 1\]"),
        (["training.ema_decay=1"], r"`training.ema_decay` is 1.0; expected a number in \[0, 1\)"),
        (["training.loss=l7"], r"training: `loss` is 'l7'; expected 'l1', 'mse' or 'huber'"),
        (["training=3"], r"config: `training` is 3; expected keys and values"),
        (
            ["recipes=[{base: mft, property_probability: soon}]"],
            r"`property_probability` is 'soon'",
        ),
        (["recipes=[{base: mft, movement: jump}]"], r"`movement` is 'jump'; expected 'frozen'"),
        (["recipes=[mtf]"], r"unknown recipe 'mtf'; expected one of scratch"),
        (["recipes=[{lr: 1}]"], r"has no base; .*fix: add base: mft"),
        (["recipes=[mft, mft]"], r"recipe name 'mft' occurs twice; .*mft-2"),
        (["recipes=[]"], r"`recipes` is \[\]"),
        (["seeds=[0, 0]"], r"`seeds` is \[0, 0\]; expected each once"),
        (["seeds=[-1]"], r"`seeds.0` is -1"),
        (["targets=[gap, gap]"], r"`targets` is \['gap', 'gap'\]"),
        (["targets=[]"], r"`targets` is \[\]"),
        (["targets=gap"], r"`targets` is 'gap'; expected a list, as"),
        (["workers=0"], r"`workers` is 0; expected greater than or equal to 1"),
        (["training.lr"], r"override 'training.lr' has no value; expected key=value"),
        (["=3"], r"override '=3' has no value"),
        (["recipes=[mft"], r"override 'recipes=\[mft' is not YAML .*; expected key=value"),
        (["store.path=x"], r"override 'store.path=x' goes below the value 'store'"),
    ],
)
def test_wrong_input_is_named_with_what_was_expected(overrides: list[str], message: str) -> None:
    with pytest.raises(TetherError, match=message) as caught:
        load_config(None, [*BASE, *overrides])
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(TetherError, match="config has no `split`; .*fix: add split="):
        load_config(None, ["store=s.arrow", "targets=[gap]"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("store: [", "is not YAML"),
        ("- a\n- b\n", "holds a list; expected a mapping"),
        ("just words", "holds a str; expected a mapping"),
    ],
)
def test_files_that_are_no_mapping(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(TetherError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TetherError, match=r"there is no file .*c.yaml"):
        load_config(tmp_path / "c.yaml")


def test_the_shared_config_is_valid(workspace: Any, tmp_path: Path) -> None:
    config = load_config(workspace.write_config(tmp_path))
    assert config.inputs() == workspace.inputs("gap")
