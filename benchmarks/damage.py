"""What comes of every fault of storage, every damaged file and every bad input that is tried.

    python benchmarks/damage.py

Runs the tables of tests/cluster/chaos and tests/unit/test_bad_input.py, slow rows included, and
writes a row for each: what was tried, and whether it was finished, stopped with one clear line, or
neither, which is a fault of the product.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from output import RESULTS, write_json

ROOT = Path(__file__).resolve().parents[1]
TABLES = {
    "storage": "tests/cluster/chaos/test_storage_faults.py",
    "damage": "tests/cluster/chaos/test_damage.py",
    "bad input": "tests/unit/test_bad_input.py",
}
COUNTS = ("tried", "survived", "stopped in one line", "failed")
_TABLE_TEST = re.compile(r"\[(?P<name>.+)\]")


def tried(table: str, report: Path) -> list[dict[str, Any]]:
    """Returns the rows of one table's report; tests that try nothing are left out."""
    found = []
    for case in ET.parse(report).getroot().iter("testcase"):
        named = _TABLE_TEST.search(case.attrib["name"])
        if named is None or case.find("skipped") is not None:
            continue
        told = {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
        failed = case.find("failure") is not None or case.find("error") is not None
        line = told.get("stopped", "")
        found.append(
            {
                "where": table,
                "fault": named["name"],
                "tried": 1,
                "survived": int(not failed and not line),
                "stopped in one line": int(not failed and bool(line)),
                "failed": int(failed),
                "reason": _placeless(line),
            }
        )
    return found


def totals(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Returns the sums of each table that was tried."""
    return {
        table: {count: sum(row[count] for row in rows if row["where"] == table) for count in COUNTS}
        for table in dict.fromkeys(row["where"] for row in rows)
    }


def _placeless(line: str) -> str:
    """A line without the temporary folder that the test ran in."""
    return re.sub(r"/\S*?/(?=(damaged|runs|run|images|other|file|none|nowhere)\b)", ".../", line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--table", choices=TABLES, action="append", help="only this one")
    parser.add_argument("--write", type=Path, default=RESULTS / "damage.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for table in arguments.table or TABLES:
            report = Path(folder) / "report.xml"
            words = ["-m", "pytest", "-q", "-o", "timeout=0", "-p", "no:cacheprovider"]
            words += ["-o", "junit_family=legacy"]  # Which keeps the properties of a test.
            words += [f"--junitxml={report}", TABLES[table]]
            subprocess.run([sys.executable, *words], cwd=ROOT, check=False)
            rows += tried(table, report)
    found = totals(rows)
    for table, counts in found.items():
        if counts["tried"]:
            print(
                f"{table:<10}", ", ".join(f"{count} {number}" for count, number in counts.items())
            )
    write_json(arguments.write, {"rows": rows, "totals": found})


if __name__ == "__main__":
    main()
