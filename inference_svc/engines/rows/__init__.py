"""The engine of ours: continuous batching over any causal language model that Transformers can load.

Importing this package imports no torch; the engine does when it is made.
"""

import logging

# It warns at import that it found no package with which to fetch a compiled kernel from the hub. We never want that.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
