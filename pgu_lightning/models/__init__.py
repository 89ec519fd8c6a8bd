"""The networks, plain torch, and the LightningModule that trains any of them."""

from pgu_lightning.models.all_cnn import AllCNN
from pgu_lightning.models.augment import CropFlip
from pgu_lightning.models.classifier import Classifier
from pgu_lightning.models.mlp import MLP
from pgu_lightning.models.resnet18 import ResNet18
from pgu_lightning.models.small_cnn import SmallCNN
from pgu_lightning.models.small_vgg import SmallVGG
from pgu_lightning.models.vit import ViT

__all__ = ["MLP", "AllCNN", "Classifier", "CropFlip", "ResNet18", "SmallCNN", "SmallVGG", "ViT"]
