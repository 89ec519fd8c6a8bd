"""Every config file composes, and what it names can be made."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf

from pgu_lightning.methods import PGU, ClosedForm, Finetune, NegGradPlus, Retrain
from pgu_lightning.requests import ForgetRequest

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.glob("*/**/*.yaml"))
OPTIONS = [(path.parts[0], "/".join(path.parts[1:])) for path in FILES if path.parts[0] != "reduced" and path.name[0] != "_"]
IDS = ["/".join(option) for option in OPTIONS]
NEEDS_DATA = {"cifar10", "tiny_imagenet", "image_folder"}
PAPER = sorted(path.stem for path in (CONF / "experiment" / "paper").glob("[!_]*.yaml"))


def composed(*overrides, tmp_path):
    with initialize_config_module("pgu_lightning.conf", version_base="1.3"):
        return compose("config", overrides=[f"output_dir={tmp_path}", f"cache={tmp_path / 'cache'}", *overrides])


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=IDS)
def test_every_option_composes_and_resolves(group, option, tmp_path):
    overrides = [f"{group}={option}"]
    if option in NEEDS_DATA or option.startswith("paper/"):
        overrides.append(f"data.root={tmp_path}")
    if option == "file":
        overrides.append(f"forget.path={tmp_path / 'ids.txt'}")
    config = composed(*overrides, tmp_path=tmp_path)
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=IDS)
def test_every_file_says_what_it_is(group, option):
    first = (CONF / group / f"{option}.yaml").read_text().splitlines()[0]
    assert first.startswith("#")


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "method"])
def test_methods(option, tmp_path):
    method = instantiate(composed(f"method={option}", tmp_path=tmp_path).method, _convert_="all")
    assert isinstance(method, PGU | ClosedForm | Finetune | NegGradPlus | Retrain)
    assert method.name == option
    assert method.uses_retain_data == (option in ("retrain", "finetune", "neggrad_plus"))


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "logger"])
def test_loggers(option, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    loggers = instantiate(composed(f"logger={option}", tmp_path=tmp_path).logger)
    expected = {"none": 0, "many": 3}.get(option, 1)
    assert len(loggers) == expected


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "trainer" and option not in ("gpu", "ddp", "slurm")])
def test_trainers(option, tmp_path):
    trainer = instantiate(composed(f"trainer={option}", tmp_path=tmp_path).trainer, max_epochs=3, logger=False)
    assert trainer.max_epochs == 3
    assert trainer.world_size == (2 if option == "ddp_sim" else 1)


def test_requests(tmp_path):
    (tmp_path / "ids.txt").write_text("a\nb\n")
    assert instantiate(composed(tmp_path=tmp_path).forget) == ForgetRequest(classes=[3])
    from_file = composed("forget=file", f"forget.path={tmp_path / 'ids.txt'}", tmp_path=tmp_path)
    assert instantiate(from_file.forget) == ForgetRequest(ids=["a", "b"])


def test_poison_asks_the_data_for_as_many_wrong_labels(tmp_path):
    config = composed("forget=poison", "forget.size=7", tmp_path=tmp_path)
    data = instantiate(config.data)
    data.setup()
    request = instantiate(config.forget)(data)
    assert (request.kind, len(request.indices)) == ("poison", 7)


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("data", ["fashion_mnist", "textures", None])
def test_experiments_of_the_paper(name, data, tmp_path):
    """In their own size on their own data; in a small one, of the same method, where that is replaced."""
    published = composed(f"experiment=paper/{name}", tmp_path=tmp_path)
    config = composed(f"experiment=paper/{name}", *([f"data={data}"] if data else []), tmp_path=tmp_path)
    assert config.method == published.method
    assert published.data.root is None
    if data is None:
        return
    small, large = (instantiate(one.model.network, shape=[3, 32, 32], num_classes=10) for one in (config, published))
    assert type(small) is type(large)
    count = [sum(parameter.numel() for parameter in network.parameters()) for network in (small, large)]
    assert count[0] < count[1] / 10
    assert config.data.train_size <= 4000 < published.data.train_size
