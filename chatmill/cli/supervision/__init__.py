"""Starts the services as processes, watches them, and stops them. Knows their names and nothing of what they do."""
