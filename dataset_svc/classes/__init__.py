"""The dataset classes that come with Chatmill, one file each. Importing this package registers them."""

from dataset_svc.classes.conversations import Conversations
from dataset_svc.dataset import DATASET_CLASSES

__all__ = ["DATASET_CLASSES", "Conversations"]
