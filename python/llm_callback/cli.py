"""The command ``llm-callback``."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# One run is cancelled and another must not notice; each run takes two threads.
_FEWEST_RUNS = 2
_MOST_RUNS = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (without the program's name; ``sys.argv`` if None).

    Returns the exit status: 0 for success, 1 for a demo that found a fault, 2 for a command line or
    an installation that cannot work, 130 after Ctrl-C. Blocks until the command is done.

    Raises ``SystemExit`` for ``--help``, ``--version`` and a command line that cannot be parsed.
    """
    arguments = _parser().parse_args(argv)
    try:
        return _demo(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has gone; without this, Python's flush at exit complains again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llm-callback",
        description="Many LLM-agent runs in one process, each with its own events and cancel.",
    )
    parser.add_argument("--version", action="version", version=f"llm-callback {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="run real agents at the same time and check every event (needs no network, no model)",
        description="Run a hierarchy of real strands agents many times at once on a scripted model, "
        "cancel one run half-way, and check every event against the script. The exit status is 0 "
        "only if each event reached its own run, in order, once, and only the one run was stopped.",
    )
    demo.add_argument(
        "--runs",
        type=_number_of_runs,
        default=10,
        metavar="N",
        help=f"how many, {_FEWEST_RUNS} to {_MOST_RUNS} (default: %(default)s)",
    )
    demo.add_argument(
        "--model",
        metavar="PROVIDER:MODEL",
        help="a real model for all agents, such as openai:gpt-4o-mini; its key is taken from the environment",
    )
    demo.add_argument(
        "--json", action="store_true", help="print the result as one JSON object and nothing else"
    )
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    try:
        # Here and not above: strands takes a second to import, which --help should not.
        from llm_callback import demo  # noqa: PLC0415
    except ImportError as error:
        if error.name != "strands":
            raise
        print(
            'llm-callback demo needs strands-agents: pip install "llm-callback[strands]"',
            file=sys.stderr,
        )
        return 2
    if arguments.model is not None and (problem := demo.why_not(arguments.model)):
        print(f"llm-callback demo: {problem}", file=sys.stderr)
        return 2
    return demo.main(runs=arguments.runs, as_json=arguments.json, model=arguments.model)


def _number_of_runs(text: str) -> int:
    try:
        runs = int(text)
    except ValueError:
        runs = 0
    if not _FEWEST_RUNS <= runs <= _MOST_RUNS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number from {_FEWEST_RUNS} to {_MOST_RUNS}"
        )
    return runs


def _version() -> str:
    try:
        return metadata.version("llm-callback")
    except metadata.PackageNotFoundError:
        return "(not installed)"
