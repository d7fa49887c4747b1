"""Chatmill: conversations go in, a tuned, served and scored chat model comes out."""

__version__ = "0.1.0"
