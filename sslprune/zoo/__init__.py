"""Models that the shipped recipes use."""

from sslprune.zoo.digits_cnn import digits_cnn
from sslprune.zoo.resnet_cifar import resnet_cifar

__all__ = ["digits_cnn", "resnet_cifar"]
