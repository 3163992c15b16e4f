"""`nailtool adopt`: trained weights become a variant; what is damaged, foreign or in the way is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import model_zoo
from nailcore.errors import NailtoolError, WeightsError
from nailcore.facts import WeightsFacts, read_fact, write_fact
from nailcore.variant import load_variant
from nailtool.cli import main
from nailtool.shipping import adopt_weights
from nailtool.training import TrainOrder, choose_variants

SHIPPED = model_zoo.WEIGHTS_DIR


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A zoo of its own with the shipped variants and no weights."""
    folder = tmp_path / "zoo"
    shutil.copytree(model_zoo.VARIANTS_DIR, folder / "variants")
    (folder / "weights").mkdir()
    monkeypatch.setattr(model_zoo, "VARIANTS_DIR", folder / "variants")
    monkeypatch.setattr(model_zoo, "WEIGHTS_DIR", folder / "weights")
    model_zoo.load_variants.cache_clear()
    yield folder
    monkeypatch.undo()
    model_zoo.load_variants.cache_clear()


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The result of a training: the shipped weights of 43 layers at 288 px, in a folder of one's own."""
    for path in SHIPPED.glob("nail43-288.*"):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path / "nail43-288.safetensors"


def test_adopted_weights_are_a_variant_like_any_other(
    zoo: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["adopt", str(trained), "--name", "mine-288", "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["variant"]["name"] == "mine-288"
    variant, twin = model_zoo.find_variant("mine-288"), model_zoo.find_variant("nail43-288")
    assert variant == twin.model_copy(update={"name": "mine-288", "weights": "mine-288"})
    assert load_variant(zoo / "variants" / "mine-288.toml") == variant
    for path in SHIPPED.glob("nail43-288.*"):
        assert (zoo / "weights" / f"mine-288{path.suffix}").read_bytes() == path.read_bytes()


def test_a_name_of_several_lines_stays_a_comment(zoo: Path, trained: Path) -> None:
    facts = read_fact(trained.with_suffix(".json"), WeightsFacts)
    images = facts.trained_on.model_copy(update={"name": "mine\nname = 3"})
    write_fact(trained.with_suffix(".json"), facts.model_copy(update={"trained_on": images}))
    assert load_variant(zoo / "variants" / f"{adopt_weights(trained, 'mine-288').name}.toml").height_px == 288


def test_the_family_is_trained_and_measured_as_before(zoo: Path, trained: Path) -> None:
    order = TrainOrder(data=("x",), depth=43, init=None, out=zoo, settings={}, input_px=288)
    before = choose_variants(order)
    adopt_weights(trained, "mine-288")
    assert choose_variants(order) == before and [v.name for v in before] == ["nail43-288"]


def test_a_taken_name_is_kept_unless_told(zoo: Path, trained: Path) -> None:
    declared = (zoo / "variants" / "nail43-288.toml").read_text("utf-8")
    with pytest.raises(NailtoolError, match="There is a variant nail43-288 already"):
        adopt_weights(trained, "nail43-288")
    assert not list((zoo / "weights").iterdir())
    adopt_weights(trained, "nail43-288", replace=True)
    assert (zoo / "variants" / "nail43-288.toml").read_text("utf-8") == declared, "our own words stay"
    assert len(list((zoo / "weights").iterdir())) == 3


def test_the_name_says_which_of_the_measured_sizes_it_takes(zoo: Path, trained: Path) -> None:
    with pytest.raises(NailtoolError, match="measured at 288 px") as told:
        adopt_weights(trained, "mine-480")
    assert "mine-288" in told.value.hint
    facts = read_fact(trained.with_suffix(".json"), WeightsFacts)
    several = [facts.accuracy[0].model_copy(update={"variant": f"nail43-{px}"}) for px in (480, 352, 288)]
    write_fact(trained.with_suffix(".json"), facts.model_copy(update={"accuracy": several}))
    assert adopt_weights(trained, "mine-352").height_px == 352
    with pytest.raises(NailtoolError, match="measured at 480 and 352 and 288 px"):
        adopt_weights(trained, "mine-3")
    assert {p.stem for p in (zoo / "weights").iterdir()} == {"mine-352"}


def test_another_network_never_takes_the_place_of_a_shipped_one(zoo: Path, trained: Path) -> None:
    declared = (zoo / "variants" / "nail55-288.toml").read_text("utf-8")
    with pytest.raises(NailtoolError, match="nail55-288 is declared as another network than nail43-288"):
        adopt_weights(trained, "nail55-288", replace=True)
    assert (zoo / "variants" / "nail55-288.toml").read_text("utf-8") == declared
    assert not list((zoo / "weights").iterdir())


def test_weights_that_lie_in_the_zoo_are_not_lost_by_adopting_them_again(zoo: Path, trained: Path) -> None:
    adopt_weights(trained, "mine-288")
    before = {p.name: p.read_bytes() for p in (zoo / "weights").iterdir()}
    adopt_weights(zoo / "weights" / "mine-288.safetensors", "mine-288", replace=True)
    assert {p.name: p.read_bytes() for p in (zoo / "weights").iterdir()} == before and len(before) == 3


@pytest.mark.parametrize("name", ["Mine-288", "mine", "mine-x", "../mine-288", "-288"])
def test_a_name_that_no_variant_can_have_is_refused(name: str, zoo: Path, trained: Path) -> None:
    with pytest.raises(NailtoolError, match=r"cannot be (the|a variant's) name"):
        adopt_weights(trained, name)
    assert not list((zoo / "weights").iterdir()) and not (zoo / "mine-288.toml").exists()


def test_damaged_weights_are_named_and_nothing_is_written(zoo: Path, trained: Path) -> None:
    data = bytearray(trained.read_bytes())
    data[-1] ^= 1
    trained.write_bytes(data)
    with pytest.raises(WeightsError, match="bytes changed"):
        adopt_weights(trained, "mine-288")
    assert not list((zoo / "weights").iterdir()) and not (zoo / "variants" / "mine-288.toml").exists()


def test_facts_of_the_other_depth_are_refused_with_the_layers_named(zoo: Path, trained: Path) -> None:
    facts = read_fact(trained.with_suffix(".json"), WeightsFacts)
    write_fact(trained.with_suffix(".json"), facts.model_copy(update={"encoder_layers": 55}))
    with pytest.raises(WeightsError, match="weights of another network"):
        adopt_weights(trained, "mine-288")
    assert not list((zoo / "weights").iterdir())


@pytest.mark.parametrize("suffix", [".safetensors", ".json", ".md"])
def test_a_missing_file_is_named(suffix: str, zoo: Path, trained: Path) -> None:
    trained.with_suffix(suffix).unlink()
    with pytest.raises(NailtoolError, match=f"nail43-288{suffix}: no such file"):
        adopt_weights(trained, "mine-288")
