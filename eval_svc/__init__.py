"""The evaluation service: scripted customers talk to an access point, and out comes a verdict one can defend."""
