#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Judges what scripts/zero-cost built and counted.

usage: ci/zero_cost.py sizes BASE SERIES      objects with debug information
       ci/zero_cost.py site VMLINUX           the hook's sites in the series' kernel
       ci/zero_cost.py counts BASE SERIES [OTHER SELF]   consoles of the counting machines
       ci/zero_cost.py speed FILE             lines "KERNEL STATE JOBS WRITES-A-SECOND"

Prints a line PASS or FAIL for every claim, and fails if one does not hold.
"""

import collections
import difflib
import re
import statistics
import struct
import subprocess
import sys
from pathlib import Path

LIMIT = 0.1     # percent
NOPS = {b"\x66\x90", b"\x0f\x1f\x44\x00\x00"}
KEY = "blk_filter_enabled"
failed = False


def claim(holds, text):
    global failed
    failed |= not holds
    print(f"{'PASS' if holds else 'FAIL'} {text}", flush=True)


def run(*args):
    return subprocess.run(args, check=True, stdout=subprocess.PIPE).stdout.decode()


# --- sizes ------------------------------------------------------------------------

# What each structure may grow by; None: as it needs, it is not on the path of a bio.
STRUCTS = {"bio": 0, "request": 0, "task_struct": 0, "block_device": 0, "request_queue": 0,
           "gendisk": None}


def sizes(base, series):
    def pahole(obj, name):
        text = run("pahole", "-C", name, obj)
        return text, int(re.findall(r"/\* size: (\d+)", text)[-1])

    print(f"{'bytes':16}{'base':>8}{'series':>8}{'more':>6}")
    found = {name: (pahole(base, name), pahole(series, name)) for name in STRUCTS}
    for name, ((_, one), (_, two)) in found.items():
        print(f"{name:16}{one:8}{two:8}{two - one:6}")
    for name, ((one, _), (two, _)) in found.items():
        changed = [line for line in difflib.unified_diff(one.splitlines(), two.splitlines(), n=0, lineterm="")
                   if re.match(r"[-+]\t(?!/\* .*cacheline)", line)]
        if changed:
            print(f"\nstruct {name}, by pahole:", *changed, sep="\n")
    print()
    for name, ((_, one), (_, two)) in found.items():
        limit = STRUCTS[name]
        if limit is not None:
            claim(two - one <= limit, f"struct {name} grows by {two - one} bytes, at most {limit} allowed")


# --- the sites --------------------------------------------------------------------

class Elf:
    def __init__(self, path):
        self.path = path
        self.data = Path(path).read_bytes()
        shoff, = struct.unpack_from("<Q", self.data, 0x28)
        entsize, count, names = struct.unpack_from("<HHH", self.data, 0x3a)
        raw = [struct.unpack_from("<IIQQQQ", self.data, shoff + i * entsize) for i in range(count)]
        strings = raw[names][4]
        self.sections = {}
        for name, kind, _, address, offset, size in raw:
            end = self.data.index(b"\0", strings + name)
            self.sections[self.data[strings + name:end].decode()] = (kind, address, offset, size)
        self.symbols = {}
        functions = []
        for line in run("llvm-nm", "--numeric-sort", "--defined-only", path).splitlines():
            address, kind, name = line.split(" ", 2)
            self.symbols[name] = int(address, 16)
            if kind in "tTwW":
                functions.append((int(address, 16), name))
        self.functions = functions

    def read(self, address, length):
        for kind, start, offset, size in self.sections.values():
            if start and kind != 8 and start <= address < start + size:
                return self.data[offset + address - start:][:length]
        raise ValueError(f"{self.path} has nothing at {address:#x}")

    def function(self, address):
        """The name and start of the function at an address."""
        return max((start, name) for start, name in self.functions if start <= address)[::-1]

    def jump_entries(self, key):
        """Where the branches on a static key are, and where each of them leads."""
        start = self.symbols["__start___jump_table"]
        table = self.read(start, self.symbols["__stop___jump_table"] - start)
        for at in range(0, len(table), 16):
            code, target, where = struct.unpack_from("<iiq", table, at)
            # The two low bits are flags.
            if start + at + 8 + (where & ~3) == self.symbols[key]:
                yield start + at + code, start + at + 4 + target


def site(vmlinux):
    elf = Elf(vmlinux)

    def listing(name):
        """The function's instructions: address to text."""
        text = run("llvm-objdump", "-d", "--no-show-raw-insn", f"--disassemble-symbols={name}", vmlinux)
        return {int(m[1], 16): re.sub(r"\s+", " ", m[2])
                for m in re.finditer(r"^\s*([0-9a-f]+):\s+(\S.*)$", text, re.M)}

    entries = sorted(elf.jump_entries(KEY))
    functions = set()
    for address, target in entries:
        name, start = elf.function(address)
        functions.add(name)
        code = listing(name)
        order = sorted(code)
        length = 2 if elf.read(address, 2) in NOPS else 5
        data = elf.read(address, length)
        at = order.index(address)
        print(f"\n{name}+{address - start:#x}: {data.hex(' ')}")
        for a in order[max(0, at - 3):at + 4]:
            print(f"  {'>' if a == address else ' '} +{a - start:#x}\t{code[a]}")
        print("    out of line, where the branch leads when the key is on:")
        for a in order[order.index(target):]:
            print(f"    +{a - start:#x}\t{code[a]}")
            if re.match(r"(jmp|ret)", code[a]):
                break
        claim(data in NOPS and order[at + 1] == address + length and target != address + length,
              f"the hook in {name} is a NOP of {length} bytes; what it skips is at +{target - start:#x}")
    print()
    claim(entries, f"{len(entries)} places branch on {KEY}: {', '.join(sorted(functions))}")


# --- the counts -------------------------------------------------------------------

Count = collections.namedtuple("Count", "bios passes least median most total")


def read_counts(console):
    """The counts of a console's log, by path."""
    text = Path(console).read_text(errors="replace")
    if not re.search(r"^DONE", text, re.M):
        print(*text.splitlines()[-15:], sep="\n")
        sys.exit(f"ci/zero_cost.py: {console}: the counting did not end")
    want, got = map(int, re.search(r"^CALIBRATION (\d+) (\d+)", text, re.M).groups())
    counts = {m[1]: Count(*map(int, m[2].split()))
              for m in re.finditer(r"^COUNT (\S+) ((?:\d+ ?)+)\s*$", text, re.M)}
    return want, got, counts


def counts(base, series, *filtered):
    machines = [read_counts(f) for f in (base, series, *filtered)]
    want, got, _ = machines[0]
    print(f"calibration: a loop of {want} instructions counts "
          + ", ".join(str(got) for _, got, _ in machines) + "\n")
    # Beside the loop there are the few instructions that read the counter.
    for name, (want, got, _) in zip(("base", "series"), machines):
        claim(0 <= got - want < 10, f"{name}: the time-stamp counter counts instructions")

    print("\ninstructions for a bio: the median of the passes, without a filter")
    print(f"{'path':20}{'base':>11}{'series':>11}{'more':>8}{'percent':>9}    least … most (base; series)")
    rows = []
    for path, one in machines[0][2].items():
        two = machines[1][2][path]
        a, b = one.median / one.bios, two.median / two.bios
        rows.append((path, a, b))
        spread = "; ".join(f"{c.least / c.bios:.1f} … {c.most / c.bios:.1f}" for c in (one, two))
        print(f"{path:20}{a:11.3f}{b:11.3f}{b - a:+8.3f}{(b - a) / a * 100:+8.3f}%    {spread}")

    print("\nof all passes, with timer ticks and what else happens")
    for path, one in machines[0][2].items():
        two = machines[1][2][path]
        a, b = (c.total / c.passes / c.bios for c in (one, two))
        print(f"{path:20}{a:11.3f}{b:11.3f}{b - a:+8.3f}{(b - a) / a * 100:+8.3f}%    "
              f"{one.bios * one.passes} bios")

    if filtered:
        print("\nfor comparison, more than base: a filter that passes everything")
        print(f"{'path':20}{'on another disk':>18}{'on this disk':>18}")
        for path, a, _ in rows:
            more = [m[2][path].median / m[2][path].bios - a for m in machines[2:]]
            print(f"{path:20}" + "".join(f"{d:+9.1f} {d / a * 100:+7.2f}%" for d in more))
    print()
    for path, a, b in rows:
        percent = (b - a) / a * 100
        # The compiler may save some by chance, as it allocates registers anew.
        claim(percent <= LIMIT, f"{path}: {percent:+.3f} % instructions, at most +{LIMIT} % allowed")


# --- the speed --------------------------------------------------------------------

ROWS = {"base": "base none", "compiled in": "on none", "a filter on another disk": "on other",
        "a filter that passes everything": "on self"}


def speed(path):
    found = collections.defaultdict(list)
    for line in Path(path).read_text().splitlines():
        kernel, state, jobs, rate = line.split()
        found[f"{kernel} {state}", jobs].append(float(rate))
    print(f"thousand writes of 4 KiB a second: the median, and least … most\n{'':34}{'1 job':32}2 jobs")
    for text, row in ROWS.items():
        cells = []
        for jobs in "12":
            rates = found[row, jobs]
            percent = statistics.median(rates) / statistics.median(found["base none", jobs]) * 100 - 100
            cells.append(f"{statistics.median(rates) / 1e3:6.1f} {percent:+5.1f}% "
                         f"({min(rates) / 1e3:.1f} … {max(rates) / 1e3:.1f})")
        print(f"{text:34}{cells[0]:32}{cells[1]}")


if __name__ == "__main__":
    commands = {"sizes": sizes, "site": site, "counts": counts, "speed": speed}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])
    sys.exit(failed)
