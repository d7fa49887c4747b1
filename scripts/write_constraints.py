"""Write constraints.txt: the exact versions, in this environment, of all that Chatmill and its extras need.

Run it in an environment where `pip install -e '.[dev]'` has just been tried and the tests pass.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TARGET = Path(__file__).resolve().parent.parent / "constraints.txt"
HEADER = """\
# Exact versions that Chatmill is tested with; written by scripts/write_constraints.py.
# torch: a CPU build of this version is used where pip's find-links offers one; a range would take the CUDA build.
"""


def closure(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]], found: dict[str, str]) -> None:
    """Put the versions of `name` and of all that it needs into `found`; what isn't installed is left out."""
    key = (canonicalize_name(name), extras)
    if key in seen:
        return
    seen.add(key)
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return
    found[key[0]] = package.version.partition("+")[0]
    for text in package.requires or ():
        requirement = Requirement(text)
        environments = [{"extra": extra} for extra in extras] or [{"extra": ""}]
        if requirement.marker is None or any(requirement.marker.evaluate(e) for e in environments):
            closure(requirement.name, frozenset(requirement.extras), seen, found)


def main() -> None:
    """Write the file and say how long it is."""
    found: dict[str, str] = {}
    closure("chatmill", frozenset(distribution("chatmill").metadata.get_all("Provides-Extra") or ()), set(), found)
    found.pop("chatmill")
    TARGET.write_text(HEADER + "".join(f"{name}=={found[name]}\n" for name in sorted(found)), encoding="utf-8")
    print(f"{len(found)} versions in {TARGET.name}")


if __name__ == "__main__":
    main()
