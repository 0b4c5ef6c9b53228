#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Where each kselftest runs when all tests run, and why.

usage: ci/plan.py

Prints the table that ci/README.md has. Each test can run in every machine, whole: with
`ci/kselftests --kernel NAME --cpus N TEST`.
"""

import sys
from dataclasses import dataclass, field

# The kernel of scripts/build and the number of processors. User-mode Linux runs at native
# speed everywhere, x86-64 is emulated where there is no KVM.
MACHINES = {"um": ("um", 1), "um-smp": ("um", 2), "x86_64": ("x86_64", 2)}
ALL = ""


@dataclass
class Plan:
    test: str                   # the beginning of the file's name
    um: str | None              # the cases in user-mode Linux, as a regular expression; None: none
    smp: str | None             # the same with two processors
    x86: str | None             # the same in the x86-64 machine
    why: str                    # what that adds
    # Variables of a test that is shorter here than in scripts/torture
    env: dict = field(default_factory=dict)

    def cases(self, machine):
        return {"um": self.um, "um-smp": self.smp, "x86_64": self.x86}[machine]


SMOKE = "one case on x86-64 code"
PLANS = [
    Plan("test_01", ALL, None, "32-bit|version", "system calls of 32-bit programs"),
    Plan("test_02", ALL, None, "lengths of arguments|pointers", SMOKE),
    Plan("test_03", ALL, None, "^null_blk$|spare disk", "virtio disk"),
    Plan("test_04", ALL, "at once|32 writes", "spare disk|at once", "virtio disk"),
    Plan("test_05", ALL, None, "regular file on ext4", SMOKE),
    Plan("test_06", ALL, "at once|two wait", "^file$", SMOKE),
    Plan("test_07", ALL, None, "ext4 and xfs", "virtio disks"),
    Plan("test_08", ALL, None, "spare disk", "virtio disk"),
    Plan("test_09", ALL, None, "frozen at take", SMOKE),
    Plan("test_10", ALL, ALL, "unloading|everything at once", "static keys, objtool's code"),
    Plan("test_11", ALL, ALL, "spare disk", "virtio disk"),
    Plan("test_12", ALL, None, "^spare", "virtio disk"),
    Plan("test_13", ALL, ALL, "many writers", SMOKE),
    Plan("test_14", ALL, ALL, "^virtio|unloading", "virtio disks, which can be unplugged"),
    # User-mode Linux with two processors loses swapped pages, also without the driver: see README.md.
    Plan("test_15", ALL, "hardware queues|schedulers", "^swap", "swap on two processors, to a virtio disk"),
    Plan("test_16", ALL, None, ALL, "all system calls on x86-64 code, by two processors", {"BLKSNAP_FUZZ_CALLS": "8000"}),
    Plan("test_17", None, None, ALL, "32-bit programs, which user-mode Linux does not run"),
    Plan("test_18", ALL, None, None, ""),
    Plan("test_19", ALL, None, "ranges of a disk", SMOKE),
    Plan("test_20", ALL, None, "on dm-crypt", SMOKE),
    Plan("test_21", ALL, ALL, "again and again", SMOKE),
    Plan("test_22", ALL, "random operations", None, "", {"BLKSNAP_ROUNDS": "2000"}),
    Plan("test_23", ALL, None, None, ""),
    Plan("test_24", None, None, ALL, "tracing, which user-mode Linux is built without"),
    Plan("test_25", ALL, "busy", None, ""),
    Plan("test_command", ALL, None, "events$|grows$|killed|destroy|backup$|interrupted|restore|changed",
         "partitions, mounts and signals on two processors"),
    Plan("test_proof", ALL, None, None, "", {"BLKSNAP_BACKUPS": "4"}),
]


def find(name):
    """The plan of a test; a test that none is made for runs whole in user-mode Linux."""
    return next((p for p in PLANS if name.startswith(p.test)), Plan(name, ALL, None, None, ""))


def table():
    def cell(pattern):
        return "–" if pattern is None else "all" if pattern == ALL else f"`{pattern}`".replace("|", "\\|")
    rows = [("test", *MACHINES, "what x86_64 adds", "shorter than in torture"), ("---",) * 6]
    rows += [(p.test, *map(cell, (p.um, p.smp, p.x86)), p.why or "–",
              ", ".join(f"`{k}={v}`" for k, v in p.env.items()) or "–") for p in PLANS]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(__doc__)
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    print(table(), end="")
