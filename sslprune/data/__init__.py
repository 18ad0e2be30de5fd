"""Data: batches for training and evaluation, from Parquet images, the shipped digits, or a person's own factory."""

from sslprune.data.batches import Batches, Data, build_data
from sslprune.data.digits import digits
from sslprune.data.images import Images, read_images

__all__ = ["Batches", "Data", "Images", "build_data", "digits", "read_images"]
