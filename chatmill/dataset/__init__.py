"""The contract of `dataset`, generated from protos/."""
