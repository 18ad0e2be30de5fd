"""Models that the shipped recipes use."""

from sslprune.zoo.digits_cnn import digits_cnn
from sslprune.zoo.lenet import lenet, mlp
from sslprune.zoo.lstm_lm import lstm_lm
from sslprune.zoo.resnet_cifar import resnet_cifar
from sslprune.zoo.rhn_lm import rhn_lm

__all__ = ["digits_cnn", "lenet", "lstm_lm", "mlp", "resnet_cifar", "rhn_lm"]
