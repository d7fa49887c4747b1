"""`lora`: low-rank adapters on a frozen base."""

from factory_svc.methods.lora.method import Lora

__all__ = ["Lora"]
