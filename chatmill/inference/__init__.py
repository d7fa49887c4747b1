"""The contract of `inference`, generated from protos/."""
