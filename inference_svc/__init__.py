"""The inference service: many models on one quantised base, streamed."""
