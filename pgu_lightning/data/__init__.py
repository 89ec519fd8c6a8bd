"""Data sets: one data module a file, each named as its file in ``conf/data``."""

from pgu_lightning.data.arrays import ArrayDataset, ImageData, LabelledImages, Normalize
from pgu_lightning.data.cifar10 import CIFAR10
from pgu_lightning.data.digits import Digits
from pgu_lightning.data.fashion_mnist import FashionMNIST, read_idx
from pgu_lightning.data.folders import FileImages
from pgu_lightning.data.image_folder import ImageFolder
from pgu_lightning.data.textures import Textures
from pgu_lightning.data.tiny_imagenet import TinyImageNet

__all__ = [
    "CIFAR10",
    "ArrayDataset",
    "Digits",
    "FashionMNIST",
    "FileImages",
    "ImageData",
    "ImageFolder",
    "LabelledImages",
    "Normalize",
    "Textures",
    "TinyImageNet",
    "read_idx",
]
