"""Choose the tests that run by default, by what they execute for each second that they take.

    python tests/choose.py                   # records all unmarked tests, and writes chosen.csv
    python tests/choose.py --least 10        # fewer tests: at least 10 new statements a second

A case that takes less than `--cheap` seconds runs by default. Of the others the chooser takes, one
after the other, the first cases of a test with the most statements per second that no chosen case
executes. The last column says how many cases of the test the record has. A test without a row runs
by default, so that new tests do. `conftest.py` marks all other cases as slow.
"""

import argparse
import csv
import tempfile
from collections import defaultdict
from pathlib import Path

from mutants import House, import_what_tests_import

TABLE = Path(__file__).with_name("chosen.csv")
AT_ONCE = 12  # cases of a test that are taken together at most


class Choice:
    """The number of cases of each test that run by default, which starts with the cheap tests."""

    def __init__(self, seconds, executed, cheap):
        self.seconds, self.executed = seconds, executed
        self.cases = defaultdict(list)
        for case in seconds:
            self.cases[case.partition("[")[0]].append(case)
        self.kept, self.covered = dict.fromkeys(self.cases, 0), set()
        for test, cases in self.cases.items():
            if sum(map(seconds.get, cases)) < cheap * len(cases):
                self.take(test, len(cases))

    def take(self, test, number):
        for case in self.cases[test][:number]:
            self.covered |= self.executed.get(case, set())
        self.kept[test] = number

    def gain(self, test):
        """The most new statements per second, and the number of cases that have them."""
        best, cost, new, kept = (0.0, 0), 0.02, set(), self.kept[test]
        for number, case in enumerate(self.cases[test][kept : kept + AT_ONCE], start=kept + 1):
            cost += self.seconds[case]
            new |= self.executed.get(case, set()) - self.covered
            best = max(best, (len(new) / cost, number))
        return best

    def grow(self, least):
        """Take tests until the best adds fewer than `least` statements per second."""
        gains = {test: self.gain(test) for test in self.cases}
        while gains:
            test = max(gains, key=gains.get)
            now = self.gain(test)
            if now[0] < least:
                del gains[test]
            elif now == gains[test]:
                self.take(test, now[1])
            gains |= {test: self.gain(test)} if test in gains else {}

    def rows(self):
        cut = (test for test, cases in self.cases.items() if self.kept[test] < len(cases))
        return sorted((test, self.kept[test], len(self.cases[test])) for test in cut)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--least", type=float, default=5.5, help="new statements per second")
    parser.add_argument("--cheap", type=float, default=0.08, help="seconds of a cheap case")
    parser.add_argument("--commit", default="HEAD")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "chosen"))
    options = parser.parse_args()
    import_what_tests_import()
    house = House(options.folder, options.commit)
    (house.tree / "tests" / TABLE.name).unlink(missing_ok=True)
    seconds, executed, _ = house.record("not slow")
    choice = Choice(seconds, executed, options.cheap)
    choice.grow(options.least)
    with TABLE.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerows([("test", "default", "cases"), *choice.rows()])
    chosen = sum(sum(map(seconds.get, c[: choice.kept[t]])) for t, c in choice.cases.items())
    total = len(set().union(*executed.values()))
    print(f"{sum(choice.kept.values())} of {len(seconds)} cases, {len(choice.covered)} of {total}")
    print(f"statements, {chosen:.0f} of {sum(seconds.values()):.0f} s with the recorder")


if __name__ == "__main__":
    main()
