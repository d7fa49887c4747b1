"""The web door of the mesh: a client of the contract that browsers can reach."""
