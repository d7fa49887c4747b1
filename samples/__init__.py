"""The made-up client that the demo runs on, and the made-up corpus behind chatmill-tiny."""
