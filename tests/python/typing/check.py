"""Runs mypy and pyright, both strict, on ``fine.py`` and ``mistakes.py``.

Each must report an error on exactly the lines of ``mistakes.py`` that name one, and the named one must be among them.
``make lint`` calls it. Both checkers must be in the environment of the Python that runs it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
FILES = [HERE / "fine.py", HERE / "mistakes.py"]
MARK = re.compile(r"# error: (?P<mypy>[\w-]+), (?P<pyright>\w+)$")

# By file and line: the codes of the errors there.
Errors = dict[tuple[str, int], set[str]]


def marked(checker: str) -> Errors:
    """Return the errors that the lines of the files name for a checker."""
    return {
        (path.name, number): {mark[checker]}
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if (mark := MARK.search(line))
    }


def mypy() -> Errors:
    """Return what mypy reports, without its notes."""
    errors: Errors = {}
    told = output("mypy", "--strict", "--output=json", *map(str, FILES))
    for line in told.splitlines():
        if line.startswith("{") and (error := json.loads(line))["severity"] == "error":
            place = (Path(error["file"]).name, error["line"])
            errors.setdefault(place, set()).add(error["code"])
    return errors


def pyright() -> Errors:
    """Return what pyright reports, its warnings included."""
    errors: Errors = {}
    told = output("pyright", "--outputjson", "--pythonpath", sys.executable)
    for error in json.loads(told)["generalDiagnostics"]:
        place = (Path(error["file"]).name, error["range"]["start"]["line"] + 1)
        errors.setdefault(place, set()).add(error.get("rule", error["message"]))
    return errors


def output(module: str, *arguments: str) -> str:
    """Return what a checker prints. Raises RuntimeError if it did not check anything."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    # 0: nothing to report; 1: something.
    if done.returncode not in {0, 1}:
        raise RuntimeError(f"{module} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def differences(checker: str, expected: Errors, reported: Errors) -> list[str]:
    """Return what a checker has missed, and what it has reported where no error is marked."""
    found = []
    for place in sorted(expected.keys() | reported.keys()):
        wanted, got = expected.get(place, set()), reported.get(place, set())
        if not wanted or not wanted <= got:
            file, line = place
            found.append(f"{file}:{line}: {checker} reports {sorted(got)}, not {sorted(wanted)}")
    return found


def main() -> int:
    """Print which lines are different from what they say. Return 1 if any is."""
    wrong = []
    for checker, reported in (("mypy", mypy()), ("pyright", pyright())):
        expected = marked(checker)
        wrong += differences(checker, expected, reported)
        print(f"{checker}: {len(expected)} lines are marked, {len(reported)} are reported")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
