"""Data: batches for training and evaluation, of pictures, labelled text, running text, or a person's own factory."""

from sslprune.data.batches import Data
from sslprune.data.digits import digits
from sslprune.data.images import Images, read_images
from sslprune.data.pictures import Batches
from sslprune.data.readers import build_data, reopen
from sslprune.data.samples import Encoder

__all__ = ["Batches", "Data", "Encoder", "Images", "build_data", "digits", "read_images", "reopen"]
