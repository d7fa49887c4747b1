"""Detectors of mechanical errors that look at every reply of every scenario; importing this package registers them."""

from eval_svc.glitches import conduct, form, leaks, transport
from eval_svc.glitches.base import DETECTORS, Budgets, Hit, Scene, glitches

__all__ = ["DETECTORS", "Budgets", "Hit", "Scene", "conduct", "form", "glitches", "leaks", "transport"]
