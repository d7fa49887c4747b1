"""The command `chatmill`: parses and shows; what it does is a client of the contract. One file per command.

Modules are imported when their command is asked for, so that `chatmill --help` answers at once.
"""
