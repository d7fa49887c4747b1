"""The contract of `common`, generated from protos/."""
