"""`prompt`: no weights; a system prompt and examples chosen from the data."""

from factory_svc.methods.prompt.method import Prompt

__all__ = ["Prompt"]
