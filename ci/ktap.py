# SPDX-License-Identifier: GPL-2.0-only
"""Reads KTAP, the kernel's test output, from a console log or a test's own output.

Only the leaves count as tests: a suite that says "not ok" because a test in it did is
not a second failure. What is missing counts as one: a plan that announces more
tests than report a result, or a suite that never ends, is how a crash looks.
"""

import re
from dataclasses import dataclass, field

TIMESTAMP = re.compile(r"^\[ *(\d+\.\d+)\](?:\[[^]]*\])? ?")
RESULT = re.compile(r"^( *)(ok|not ok) (\d+)(?: -)? ?(.*?)(?: *# *(SKIP|TODO|XFAIL)\b:? ?(.*))?$")
PLAN = re.compile(r"^( *)1\.\.(\d+)(?: *# *SKIP ?(.*))?$")
SUBTEST = re.compile(r"^( *)# Subtest: (.*)$")
DIAGNOSTIC = re.compile(r"^( *)# (.*)$")


@dataclass
class Test:
    name: str
    status: str                                  # "pass", "fail" or "skip"
    why: str = ""
    notes: list = field(default_factory=list)    # the diagnostic lines before the result
    seconds: float | None = None                 # None where the lines have no time stamps

    def line(self, prefix=""):
        text = f"{self.status.upper()} {prefix}{self.name}" + (f" ({self.why})" if self.why else "")
        return text + (f" [{self.seconds:.1f} s]" if self.seconds is not None and self.status != "skip" else "")


def parse(lines, suite=""):
    """The tests in the lines of a log. `suite` names those outside of any suite."""
    results = {}        # depth: the leaves reported there since the level began
    counts = {}         # depth: how many results, suites too
    plans, titles, notes = {}, {}, {}
    started = False
    before = now = None     # time stamps of the last result and of this line
    earlier = []            # the tests of the documents before this one

    def level(indent):
        return len(indent) // 4

    def close(depth):
        """Ends the levels from depth on; returns their leaves, with what is missing."""
        leaves = []
        for d in sorted((d for d in {*results, *plans, *counts} if d >= depth), reverse=True):
            found = results.pop(d, [])
            done, planned = counts.pop(d, 0), plans.pop(d, None)
            if planned is not None and done < planned:
                found.append(Test("(the end)", "fail", f"{done} of {planned} tests reported a result"))
            leaves = found + leaves
            title = titles.pop(d, None)
            for test in leaves if title else []:
                test.name = f"{title}.{test.name}"
            notes.pop(d, None)
        return leaves

    for line in lines:
        line = line.rstrip("\r\n")
        if stamp := TIMESTAMP.match(line):
            now = float(stamp[1])
            line = line[stamp.end():]
        if re.match(r" *K?TAP version", line):
            if started and not line.startswith(" "):
                # The suites of a module that is loaded later are a document of their own.
                earlier += close(0)
            started = True
            before = now
        if not started:
            continue
        if match := PLAN.match(line):
            depth = level(match[1])
            plans[depth] = int(match[2])
            if match[2] == "0":
                counts[depth] = 0
                results.setdefault(depth, []).append(Test("(all)", "skip", match[3] or "no tests"))
        elif match := SUBTEST.match(line):
            titles[level(match[1])] = match[2]
        elif match := RESULT.match(line):
            depth = level(match[1])
            name = match[4] or f"test {match[3]}"
            status = "pass" if match[2] == "ok" else "fail"
            if match[5] in ("SKIP",):
                status = "skip"
            elif match[5] in ("TODO", "XFAIL"):
                status = "pass"
            title = titles.get(depth + 1)
            children = close(depth + 1)
            counts[depth] = counts.get(depth, 0) + 1
            if children:
                for child in children if not title else []:
                    child.name = f"{name}.{child.name}"
                if status == "fail" and not any(c.status == "fail" for c in children):
                    children.append(Test(name, "fail", "the suite itself", notes.get(depth, [])))
                results.setdefault(depth, []).extend(children)
            else:
                why = match[6] or ""
                seconds = now - before if before is not None else None
                results.setdefault(depth, []).append(
                    Test(name, status, why, notes.pop(depth, []) + notes.pop(depth + 1, []), seconds))
            before = now
            notes.pop(depth, None)
        elif match := DIAGNOSTIC.match(line):
            notes.setdefault(level(match[1]), []).append(match[2])

    open_levels = {d: t for d, t in titles.items() if d > 0 and (results.get(d) or d in plans)}
    tests = earlier + close(0)
    for _, title in sorted(open_levels.items()):
        tests.append(Test(title, "fail", "the suite did not end"))
    if suite:
        for test in tests:
            test.name = f"{suite}.{test.name}"
    return tests


def summary(tests):
    count = {s: sum(t.status == s for t in tests) for s in ("pass", "fail", "skip")}
    return f"{count['pass']} passed, {count['fail']} failed, {count['skip']} skipped"
