"""The engine of ours: continuous batching over any causal language model that Transformers can load.

Importing this package imports no torch; the engine does when it is made.
"""
