"""The training methods that come with Chatmill, registered by importing their folders."""

from factory_svc.methods import lora, prompt, qlora, scratch
from factory_svc.methods.base import METHODS, TrainingMethod

__all__ = ["METHODS", "TrainingMethod", "lora", "prompt", "qlora", "scratch"]
