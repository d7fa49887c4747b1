"""The sides of the serving benchmark: one module per system that people would pick."""
