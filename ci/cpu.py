#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs `scripts/bench cpu`: what a first write costs the processor.

usage: ci/cpu.py [OPTION]...

  --rounds N        rounds, in each of which every side is measured twice (default: 7)
  --side NAME,...   these sides only (blksnap dm-n4 dm-n16 dm-p4 dm-p16)
  --cpus N,...      numbers of processors (default: 1,2)
  --icount          counts instructions of an emulated x86-64 instead (see below)
  --out DIR         where results go (default: build/cpu)
  --no-build        take the kernel as it is (scripts/bench cpu only)

Origin and store are model disks that take 20 µs for each I/O, however many there are, and have
no memory behind them, so that no data is copied by a disk. 32,768 writes of 4 KiB go to random
places of 64 GiB, 64 at a time from each processor: the first pass on a new snapshot, so that each
is a first write, the second pass to the same places. A pass ends when nothing goes to the
store any more. The processor time is that of the process of user-mode Linux, as the host's
scheduler has it (/proc/PID/task/*/schedstat), for each write; the difference of the passes
is what is done once for each chunk. It can be negative: where writes of the second pass wait for
locks, they cost more than those that wait for a copy. The sides take turns, forwards and
backwards (A B B A). Medians, the range of all, and the ratio to the better dm-snapshot with
chunks of 4 KiB. Then for how long a snapshot of 16 disks of 1 TiB, with 1,024 scattered writes
to each before, holds their queues, and one of a disk of 64 MiB: that is what waiting for a grace
period of RCU takes, which is once, however many disks there are.

User-mode Linux with more than one processor makes two system calls of the host for each lock that
is taken with interrupts off, here also with one processor. So these figures tell how often locks
are taken rather than what that costs. With --icount QEMU executes an instruction in each ns, and
the time in which the processor is not idle is the number of instructions; it is for one processor,
differs by 1 to 3 % from run to run, and does not depend on what the machine does meanwhile.

Else let the machine do nothing. Build the kernel um-cpu before, or bench for --icount; scripts/bench
cpu does.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench import say, table      # noqa: E402

REPO = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("BLKSNAP_BUILD") or REPO / "build").resolve()
KERNEL = BUILD / "um-cpu/linux"
SIDES = {
    "blksnap": "blksnap",
    "dm-n4": "dm-snapshot N 4 KiB",
    "dm-n16": "dm-snapshot N 16 KiB",
    "dm-p4": "dm-snapshot P 4 KiB",
    "dm-p16": "dm-snapshot P 16 KiB",
}
WANTED_NS, WANTED_RATE = 0.8, 2.0
WANTED_HELD_US = 5000


def descendants(pid):
    """The process and those that it has started, directly or not."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += descendants(int(child))
    return found


def machine_of(pid):
    """The process of user-mode Linux, which is the first one that runs its kernel."""
    for found in descendants(pid):
        try:
            if Path(f"/proc/{found}/exe").resolve() == KERNEL:
                return found
        except OSError:
            continue
    sys.exit("ci/cpu.py: user-mode Linux does not run")


def cpu_ns(pid):
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())


def name_of(cpus, icount):
    return "icount" if icount else str(cpus)


def measure(cpus, rounds, sides, out, icount):
    """{(side, pass): [(ns of the processor, IOs, ns), ...]}"""
    kernel = ("bench", "--icount") if icount else ("um-cpu",)
    command = [REPO / "ci/boot", "--kernel", *kernel, "--name", f"cpu-{cpus}", "--cpus", str(cpus), "--memory", "1G", "--timeout", "3000",
               "--", REPO / "ci/guest/cpu", BUILD / ("cpu/kmod-x86_64" if icount else "cpu/kmod"), BUILD / "cpu/blksnap_ctl", str(cpus), str(rounds), ",".join(sides)]
    found, pid, last, lines = {}, None, None, []
    with open(out / f"{name_of(cpus, icount)}.log", "w") as log, \
            subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as machine:
        for line in machine.stdout:
            log.write(line)
            lines.append(line)
            if line.startswith("@take "):
                held = json.loads(line[len("@take "):])
                found.update((("take", name), times) for name, times in held.items())
            if not line.startswith("@cpu "):
                continue
            mark = json.loads(line[len("@cpu "):])
            if icount:
                now = mark["busy"]
            else:
                pid = pid or machine_of(machine.pid)
                now = cpu_ns(pid)
            if "ended" in mark:
                found.setdefault((mark["side"], mark["ended"]), []).append((now - last, mark["ios"], mark["ns"]))
            last = now
    if machine.returncode:
        print("".join(lines[-40:]))
        sys.exit(f"ci/cpu.py: the machine has ended with status {machine.returncode}")
    return found


def spread(values, digits=0):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def report(cpus, found, sides, icount):
    totals, costs, rates, rows = {}, {}, {}, []
    for side in sides:
        first, second = found[side, "first"], found[side, "second"]
        totals[side] = [cpu / ios for cpu, ios, _ in first]
        costs[side] = [(one[0] - two[0]) / one[1] for one, two in zip(first, second)]
        rates[side] = [ios / ns * 1e9 for _, ios, ns in first]
        again = [ios / ns * 1e9 for _, ios, ns in second]
        rows.append([SIDES[side], spread(totals[side]), spread([cpu / ios for cpu, ios, _ in second]), spread(costs[side]),
                     spread(rates[side]), spread(again)])
    lines = [f"{cpus} processor{'s' if cpus > 1 else ''}", ""]
    what = "instructions" if icount else "ns of the CPU"
    lines += table(["side", f"{what}, first pass", "second pass", "difference", "first writes a second", "second writes a second"], rows, 1)
    others = [s for s in ("dm-n4", "dm-p4") if s in costs]
    if "blksnap" in costs and others:
        ours, best = statistics.median(totals["blksnap"]), min(statistics.median(totals[s]) for s in others)
        rate, fastest = statistics.median(rates["blksnap"]), max(statistics.median(rates[s]) for s in others)
        lines += ["", f"{what} of a write of the first pass, of the better dm-snapshot 4 KiB: {ours / best:.2f} (wanted: {WANTED_NS} or less)",
                  f"first writes a second, of the same: {rate / fastest:.2f}" + (f" (wanted: {WANTED_RATE} or more)" if cpus > 1 else "")]
    if ("take", "large") in found:
        small, large = (spread([ns / 1000 for ns in found["take", name]]) for name in ("small", "large"))
        lines += ["", f"µs for which a take of 16 disks of 1 TiB holds their queues: {large} (wanted: {WANTED_HELD_US} or less);"
                  f" of one of 64 MiB: {small}"]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", default=",".join(SIDES))
    parser.add_argument("--cpus")
    parser.add_argument("--icount", action="store_true")
    parser.add_argument("--out", type=Path, default=BUILD / "cpu")
    # Of scripts/bench, before it compiles anything
    parser.add_argument("--plan", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sides = args.side.split(",")
    if unknown := [s for s in sides if s not in SIDES]:
        parser.error(f"--side: no {', '.join(unknown)}; there are {', '.join(SIDES)}")
    try:
        cpus = [int(n) for n in (args.cpus or ("1" if args.icount else "1,2")).split(",")]
    except ValueError:
        parser.error(f"--cpus {args.cpus}: not numbers")
    if args.rounds < 1 or min(cpus) < 1:
        parser.error("--rounds and --cpus are at least 1")
    if args.icount and cpus != [1]:
        parser.error("--icount is for one processor")
    if args.plan:
        return
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    reports = []
    for count in cpus:
        found = measure(count, args.rounds, sides, out, args.icount)
        (out / f"{name_of(count, args.icount)}.json").write_text(json.dumps({"-".join(k): v for k, v in found.items()}, indent=1) + "\n")
        reports.append(report(count, found, sides, args.icount))
        say(f"{count}: {sum(len(found[key]) for key in found if key[0] in sides)} passes")
    text = "\n\n".join(reports)
    (out / f"results{'-icount' if args.icount else ''}.txt").write_text(text + "\n")
    print(text)
    say(f"results: {out}")


if __name__ == "__main__":
    main()
