"""`python -m bridge`: serve the web door of the mesh."""

from __future__ import annotations

import os
import sys

# before anything imports Gradio: it asks its makers' server for a newer version otherwise
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from bridge.serving import main

if __name__ == "__main__":
    sys.exit(main())
