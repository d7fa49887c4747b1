"""The contract of `factory`, generated from protos/."""
