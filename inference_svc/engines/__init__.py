"""Engines: what turns a `GenerationRequest` into events. One folder per engine, one table of all."""
