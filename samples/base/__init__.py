"""The made-up corpus of many invented businesses from which chatmill-tiny is trained."""
