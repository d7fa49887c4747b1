"""`scratch`: a new Llama with its own tokenizer, trained in full."""

from factory_svc.methods.scratch.method import Scratch

__all__ = ["Scratch"]
