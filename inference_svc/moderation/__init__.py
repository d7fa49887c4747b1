"""Moderation before and after the model: what looks, what was found, and what is done about it."""
