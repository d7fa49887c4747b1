"""The contract of `eval`, generated from protos/."""
