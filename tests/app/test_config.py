"""Mistakes are refused before any work, with the key, what was expected, and the nearest name."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hydra.errors import ConfigCompositionException, MissingConfigException

from pgu_lightning.app.config import ConfigError, check, nearest
from tests.app.test_configs import CONF, composed


def choices():
    """The overrides that choose each config file."""
    for path in sorted(CONF.glob("*/**/*.yaml")):
        group, *option, last = path.relative_to(CONF).with_suffix("").parts
        if not last.startswith("_"):
            yield f"experiment={'/'.join(option)} data={last}" if group == "reduced" else f"{group}={'/'.join([*option, last])}"


@pytest.mark.parametrize("overrides", list(choices()))
def test_every_option_is_good(overrides, tmp_path):
    more = [f"forget.path={tmp_path / 'ids.txt'}"] if overrides == "forget=file" else []
    check(composed(*overrides.split(), *more, tmp_path=tmp_path))


@pytest.mark.parametrize(
    "overrides",
    [
        "method.settings.trust_radius=null",
        "method.settings.anchor=1",
        "method.settings.balanced=true",
        "preflight=only",
        "+trainer.limit_train_batches=0.5",
        "+trainer.precision=bf16-mixed",
        "model.optimizer.lr=1",
        "+logger.wandb.entity=us",
        "+forget.kind=class",
        "forget=poison forget.corrected=true",
        "~forget.classes +forget.indices=[1] +forget.kind=poison +forget.corrected=[3]",
        "~forget.classes +forget.ids=[a,b]",
    ],
)
def test_what_is_meant_passes(overrides, tmp_path):
    check(composed(*overrides.split(), tmp_path=tmp_path))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("seed=abc", 'seed="abc": expected int.'),
        ("floor=maybe", 'floor="maybe": expected bool.'),
        ("examples=-1", "examples=-1: expected int, 0 or more."),
        ("preflight=onyl", 'preflight="onyl": expected bool or only.'),
        ("objective=gap", 'objective="gap": expected estimated_gap or average_gap.'),
        ("+sed=1", "sed: there is no 'sed'. Did you mean seed?"),
        ("+data.poisson=3", "data.poisson: Digits takes no 'poisson'. Did you mean data.poison?"),
        ("+data.zzz=3", "data.zzz: Digits takes no 'zzz'. There are batch_size, seed, "),
        ("data.batch_size=big", 'data.batch_size="big": expected int.'),
        ("model.epochs='3'", 'model.epochs="3": expected int.'),
        ("model.epochs=3.5", "model.epochs=3.5: expected int."),
        ("model.network.widths=[1,b]", 'model.network.widths=[1, "b"]: expected Sequence[int].'),
        ("model.network=3", "model.network=3: expected Module, which needs a _target_."),
        ("model.optimizer.lr=high", 'model.optimizer.lr="high": expected float.'),
        ("+model.optimizer.weight_dekay=1", "AdamW takes no 'weight_dekay'. Did you mean model.optimizer.weight_decay?"),
        ("forget.classes=3", "forget.classes=3: expected Sequence[int] or null."),
        ("forget=samples forget.size=many", 'forget.size="many": expected float.'),
        ("forget=file", "forget.path: Missing mandatory value: path"),
        ("method.settings.rule.damping=x", 'method.settings.rule.damping="x": expected float.'),
        ("+method.settings.rule.dampling=1", "Soft takes no 'dampling'. Did you mean method.settings.rule.damping?"),
        ("+method.settings.ancor=1", "Settings takes no 'ancor'. Did you mean method.settings.anchor?"),
        ("method.settings.rule=soft", 'method.settings.rule="soft": expected'),
        ("method.settings.rule._target_=pgu_lightning.projection.Sotf", "Did you mean pgu_lightning.projection.Soft?"),
        ("method._target_=nowhere.to.be.found", "method._target_=nowhere.to.be.found: cannot be imported."),
        ("+trainer.max_epoch=3", "Trainer takes no 'max_epoch'. Did you mean trainer.max_epochs?"),
        ("+trainer.gradient_clip_val=x", 'trainer.gradient_clip_val="x": expected int or float or null.'),
        ("logger.wandb.offline=si", 'logger.wandb.offline="si": expected bool.'),
    ],
)
def test_a_mistake_is_named(overrides, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        check(composed(*overrides.split(), tmp_path=tmp_path))
    assert message in str(caught.value)


def test_all_mistakes_are_named_once_where_they_were_made(tmp_path):
    with pytest.raises(ConfigError) as caught:
        check(composed("seed=abc", "model.epochs=x", "+trainer.max_epoch=3", tmp_path=tmp_path))
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ['seed="abc"', 'model.epochs="x"', "trainer.max_epoch"]


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("forget.klasses=[3]", "Did you mean forget.classes?"),
        ("forgt=class", "Did you mean forget?"),
        ("forget=clas", "Did you mean forget=class?"),
        ("method=pgu_papr", "Did you mean method=pgu_paper?"),
        ("damping=0.1", "Did you mean method.settings.rule.damping?"),
        ("data.batchsize=3", "Did you mean data.batch_size?"),
        ("xyzzy=1", None),
    ],
)
def test_the_nearest_to_what_hydra_does_not_know(override, meant, tmp_path):
    with pytest.raises((ConfigCompositionException, MissingConfigException)) as caught:
        composed(override, tmp_path=tmp_path)
    assert nearest(caught.value) == meant


def test_other_errors_have_no_nearest():
    assert nearest(None) is None
    assert nearest(ValueError("something else")) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("forget.klasses=[3]", "Did you mean forget.classes?"),
        ("model.epochs=many forget.classes=[12]", 'model.epochs="many": expected int.'),
    ],
)
def test_the_command_says_it_without_a_traceback(arguments, message, tmp_path):
    command = [sys.executable, "-m", "pgu_lightning", *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.ckpt"))
