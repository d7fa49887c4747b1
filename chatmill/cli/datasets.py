"""List and show datasets, their statistics and their items.

Without a mesh that runs, the dataset service is started for this command alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from chatmill.cli import settings

if TYPE_CHECKING:
    from rich.table import Table

    from chatmill.dataset.v1 import Dataset, Item, Statistics, ValueCount
    from chatmill.recipe.mesh import Mesh

SPLITS = {"train": 1, "test": 2}
"""Split by the name that people type."""
ROLES = {1: "system", 2: "customer", 3: "agent", 4: "tool"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.set_defaults(action="list", json=False, tokenizer=None)
    actions = parser.add_subparsers(metavar="ACTION")
    listing = actions.add_parser("list", help="all datasets (the default)")
    listing.set_defaults(action="list")
    listing.add_argument("--json", action="store_true", help="as JSON")
    for name, text in (("show", "one dataset: source, splits, what was left out"), ("stats", "its statistics")):
        one = actions.add_parser(name, help=text)
        one.set_defaults(action=name)
        one.add_argument("dataset", help="its name")
        one.add_argument("--json", action="store_true", help="as JSON")
        if name == "stats":
            one.add_argument(
                "--tokenizer", type=Path, metavar="PATH", help="count tokens, too: a tokenizer.json or a model's folder"
            )
    items = actions.add_parser("items", help="its conversations")
    items.set_defaults(action="items")
    items.add_argument("dataset", help="its name")
    items.add_argument("--split", choices=sorted(SPLITS), help="only this part")
    items.add_argument("--language", action="append", default=[], metavar="CODE", help="only this language, e.g. zh")
    items.add_argument("--start", type=int, default=0, metavar="N", help="begin at this position, from 0")
    items.add_argument("--limit", type=int, default=3, metavar="N", help="at most so many; 0 means all (default 3)")
    items.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    return settings.run_async(_run(arguments))


async def _run(arguments: argparse.Namespace) -> int:
    from chatmill.cli import console as consoles
    from chatmill.cli.meshes import found_or_started
    from chatmill.recipe.mesh import connected

    config = settings.load(arguments)
    # a dataset service of our own may read what the person named
    roots = [arguments.tokenizer.absolute().parent] if arguments.tokenizer else []
    async with (
        found_or_started(arguments, config, consoles.stderr(), services=("dataset",), roots=roots) as found,
        connected(found.config, services=("dataset",)) as mesh,
    ):
        action = {"list": _list, "show": _show, "stats": _stats, "items": _items}[arguments.action]
        await action(arguments, mesh)
    return 0


def _name(text: str) -> str:
    return text if text.startswith("datasets/") else f"datasets/{text}"


async def _list(arguments: argparse.Namespace, mesh: Mesh) -> None:
    from chatmill import paging
    from chatmill.cli.console import plain, print_json, stdout, table
    from chatmill.dataset.v1 import ListDatasetsRequest

    pages = paging.every(mesh.datasets.ListDatasets, ListDatasetsRequest(page_size=200))
    datasets = [one async for page in pages for one in page.datasets]
    if arguments.json:
        print_json([plain(dataset) for dataset in datasets])
        return
    made = table("dataset", "class", "train>", "test>", "left out>", "made", "source")
    for dataset in datasets:
        train, test = _sizes(dataset)
        dropped = sum(drop.count for drop in dataset.drops)
        day = dataset.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M")
        made.add_row(
            dataset.name, dataset.dataset_class, f"{train:,}", f"{test:,}", f"{dropped:,}", day, dataset.source
        )
    stdout().print(made if datasets else "There are no datasets yet; `chatmill run RECIPE` makes one.")


def _sizes(dataset: Dataset) -> tuple[int, int]:
    sizes = {int(split.split): split.item_count for split in dataset.splits}
    return sizes.get(SPLITS["train"], 0), sizes.get(SPLITS["test"], 0)


async def _show(arguments: argparse.Namespace, mesh: Mesh) -> None:
    from chatmill.cli.console import plain, print_json, stdout, table
    from chatmill.dataset.v1 import GetDatasetRequest

    dataset = (await mesh.datasets.GetDataset(GetDatasetRequest(name=_name(arguments.dataset)))).dataset
    if arguments.json:
        print_json(plain(dataset))
        return
    train, test = _sizes(dataset)
    made = table("", "")
    made.add_row("dataset", dataset.name)
    made.add_row("class", dataset.dataset_class)
    made.add_row("source", f"{dataset.source} ({dataset.source_format})")
    made.add_row("digest", dataset.digest)
    made.add_row("split", f"{train:,} to train on, {test:,} held back (seed {dataset.split_seed})")
    for title, counts in (("left out", dataset.drops), ("changed", dataset.changes)):
        for count in counts:
            made.add_row(title, f"{count.count:,}: {count.reason} ({count.step})")
    stdout().print(made)


async def _stats(arguments: argparse.Namespace, mesh: Mesh) -> None:
    from chatmill.cli.console import plain, print_json, stdout
    from chatmill.dataset.v1 import GetStatisticsRequest

    tokenizer = str(arguments.tokenizer.absolute()) if arguments.tokenizer else ""
    request = GetStatisticsRequest(dataset=_name(arguments.dataset), tokenizer=tokenizer)
    seen = (await mesh.datasets.GetStatistics(request)).statistics
    if arguments.json:
        print_json(plain(seen))
        return
    console = stdout()
    console.print(_lengths(seen))
    console.print()
    console.print(_facts(seen))


def _lengths(seen: Statistics) -> Table:
    from chatmill.cli.console import table

    made = table(f"{seen.item_count:,} conversations", "mean>", "min>", "p50>", "p95>", "max>")
    rows = [
        ("turns", seen.turns),
        ("characters a customer message", seen.user_characters),
        ("characters an agent message", seen.assistant_characters),
        ("characters a conversation", seen.conversation_characters),
        ("tokens a customer message", seen.user_tokens),
        ("tokens an agent message", seen.assistant_tokens),
        ("tokens a conversation", seen.conversation_tokens),
    ]
    for title, seen_of in rows:
        if seen_of.count or not title.startswith("tokens"):  # tokens are counted only where a tokenizer was named
            d = seen_of
            made.add_row(title, f"{d.mean:,.1f}", f"{d.min:,.0f}", f"{d.p50:,.0f}", f"{d.p95:,.0f}", f"{d.max:,.0f}")
    position = seen.handover_position
    if position.count:
        shares = (position.mean, position.min, position.p50, position.p95, position.max)
        made.add_row("where the handover comes", *(f"{share:.0%}" for share in shares))
    return made


def _facts(seen: Statistics) -> Table:
    from chatmill.cli.console import table

    splits = {number: name for name, number in SPLITS.items()}
    made = table("", "")
    made.add_row(
        "splits", ", ".join(f"{splits.get(int(s.split), '?')} {s.item_count:,}" for s in seen.splits) or "none"
    )
    made.add_row("languages", _counts(seen.languages, "unknown"))
    made.add_row("labels", _counts(seen.labels))
    made.add_row("handovers", f"{seen.handover_count:,}")
    for reason in seen.handover_reasons:
        made.add_row("", f"{reason.count:,}: {reason.value or 'no reason given'}")
    made.add_row("near-duplicates", f"{seen.near_duplicate_count:,}")
    made.add_row("not alternating", f"{seen.not_alternating_count:,}")
    for problem in seen.role_problems:
        made.add_row("", f"{problem.count:,}: {problem.value}")
    made.add_row("ending on the customer", f"{seen.ending_on_user_count:,}")
    made.add_row("messages without text", f"{seen.empty_message_count:,}")
    for unit, longer in (("characters", seen.longer_than_characters), ("tokens", seen.longer_than_tokens)):
        if longer:
            made.add_row(f"longer, in {unit}", ", ".join(f"than {int(v.value):,}: {v.count:,}" for v in longer))
    for title, counts in (("left out", seen.drops), ("changed", seen.changes)):
        made.add_row(title, f"{sum(count.count for count in counts):,}")
        for count in counts:
            made.add_row("", f"{count.count:,}: {count.reason} ({count.step})")
    return made


def _counts(values: Iterable[ValueCount], empty: str = "none") -> str:
    return ", ".join(f"{v.value or empty} {v.count:,}" for v in values) or "none"


async def _items(arguments: argparse.Namespace, mesh: Mesh) -> None:
    import json

    from chatmill.cli.console import plain, stdout
    from chatmill.dataset.v1 import StreamItemsRequest

    request = StreamItemsRequest(
        dataset=_name(arguments.dataset),
        split=SPLITS.get(arguments.split or "", 0),  # type: ignore[arg-type] # an enum's number is its value
        languages=arguments.language,
        start_index=arguments.start,
        limit=arguments.limit,
    )
    console = stdout()
    async for response in mesh.datasets.StreamItems(request):
        for item in response.items:
            if arguments.json:
                print(json.dumps(plain(item), ensure_ascii=False))
            else:
                for line in _conversation(item):
                    console.print(line)


def _conversation(item: Item) -> list[str]:
    split = next((name for name, number in SPLITS.items() if number == item.split), "?")
    label = f", label {item.label}" if item.HasField("label") else ""
    lines = [f"{item.name}  ({split}, {item.language or 'unknown language'}{label})"]
    if item.facts:
        lines.append(f"    facts: {' '.join(item.facts)}")
    for position, message in enumerate(item.messages):
        here = item.HasField("human_intervention_idx") and item.human_intervention_idx == position
        mark = f"  <- a person should take over: {item.human_intervention_reason}" if here else ""
        calls = "".join(f" [{call.name} {call.arguments_json}]" for call in message.tool_calls)
        lines.append(f"    {ROLES.get(message.role, '?'):<9}{message.content}{calls}{mark}")
    return [*lines, ""]
