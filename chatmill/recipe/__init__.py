"""The recipe: one YAML file that says which conversations become which model, how it is scored, when it is promoted.

`reading.load` makes a `Recipe` from the file, `running.run` does what it says as a client of the contract. The package
knows the generated stubs and `chatmill.runtime.channel`; it knows no service's code, no model and no terminal. Nothing
is imported here, so that the command starts quickly.
"""
