"""`qlora`: low-rank adapters on a base held in 4 bits."""

from factory_svc.methods.qlora.method import QLora

__all__ = ["QLora"]
