"""Ready-made networks."""

from xbp.models.fast_cifar import FastCIFAR
from xbp.models.gpt import GPT
from xbp.models.lenet import LeNet5
from xbp.models.mlp import MLP
from xbp.models.registry import register as register
from xbp.models.resnet import ResNet
from xbp.models.text_classifier import TextClassifier
from xbp.models.vgg import VGG

__all__ = ["GPT", "FastCIFAR", "LeNet5", "MLP", "ResNet", "TextClassifier", "VGG"]
