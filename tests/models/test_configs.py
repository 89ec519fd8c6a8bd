"""Every file of conf/model and conf/data says what it is and builds what it names."""

from pathlib import Path

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from pgu_lightning.data import ImageData
from pgu_lightning.models import Classifier

CONF = Path(__file__).parents[2] / "conf"
MODELS = sorted(CONF.glob("model/*.yaml"))
DATA = sorted(CONF.glob("data/*.yaml"))
EMBEDDED = ("digits", "textures")


def load(path: Path, **values):
    return OmegaConf.create({"seed": 3, "part": OmegaConf.load(path), **values}).part


def test_the_files_are_the_ones_we_know():
    assert [path.stem for path in MODELS] == ["all_cnn", "mlp", "resnet18", "small_cnn", "small_vgg", "vit"]
    assert [path.stem for path in DATA] == ["cifar10", "digits", "fashion_mnist", "image_folder", "textures", "tiny_imagenet"]


@pytest.mark.parametrize("path", MODELS + DATA, ids=lambda path: path.stem)
def test_the_first_line_says_what_it_is(path):
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_trains_one_batch(path, shape):
    torch.manual_seed(0)
    model = instantiate(load(path), network={"shape": list(shape), "num_classes": 6})
    assert isinstance(model, Classifier)
    assert model.epochs >= 1
    setup = model.configure_optimizers()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    loss = torch.nn.functional.cross_entropy(model(torch.randn(4, *shape)), torch.tensor([0, 1, 2, 5]))
    loss.backward()
    setup["optimizer"].step()
    same = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert not same


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_a_data_file_names_arguments_of_its_class(path, tmp_path):
    config = load(path)
    assert config.seed == 3
    assert config.poison == 0
    assert issubclass(get_class(config._target_), ImageData)
    if path.stem not in EMBEDDED:
        config.root = str(tmp_path / "nowhere")
        with pytest.raises(Exception, match=r"data.root") as error:
            instantiate(config)
        assert isinstance(error.value.__cause__, FileNotFoundError)
        return
    data = instantiate(config)
    data.setup()
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (config.batch_size, *data.shape)
    assert data.seed == 3
    assert labels.max() < data.num_classes == len(data.class_names)
