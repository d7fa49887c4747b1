"""Write the schemas that are published for editors: `python -m eval_svc.schema`."""

from __future__ import annotations

import json
from pathlib import Path

from eval_svc.schema import scenario_schema, suite_schema

FILES = {"scenario.schema.json": scenario_schema, "suite.schema.json": suite_schema}


def main() -> None:
    """Overwrite the schema files beside this module."""
    for name, schema in FILES.items():
        text = json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
        (Path(__file__).parent / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
