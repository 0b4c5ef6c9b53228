#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs `scripts/bench latency`: measures in user-mode Linux with simulated time, and reports.

usage: ci/latency.py [OPTION]...

  --disk NAME,...   of these disks only (nvme sata hdd cloud flat100)
  --work NAME,...   these workloads only (ci/latency_plan.py has them)
  --side NAME,...   these sides beside raw (blksnap dm-n4 dm-p4 dm-p16)
  --check           fail where a figure is not that of doc/latency.txt, to the nanosecond
  --update          write doc/latency.txt
  --readme          and the charts that the README shows (doc/)
  --out DIR         where results go (default: build/latency)
  --no-build        take the kernel as it is (scripts/bench latency only)

Build the kernel um-time before; scripts/bench latency does.
"""

import argparse
import difflib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
import bench_plot      # noqa: E402
import latency_plan      # noqa: E402
from bench import say, table      # noqa: E402
from latency_plan import DISKS, SIDES, WORKS      # noqa: E402

REPO = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("BLKSNAP_BUILD") or REPO / "build").resolve()
KEPT = REPO / "doc/latency.txt"
ORDER = ("raw", "first", "second", "saved", "idle", "busy")


# --- measuring ---------------------------------------------------------------------

def boot(disk, works, sides, modules, ctl, log):
    """One machine for a disk, started; its output is in the log."""
    command = [REPO / "ci/boot", "--kernel", "um-time", "--name", f"latency-{disk}", "--memory", "1G", "--timeout", "1200",
               "--append", "time-travel=inf-cpu", "--", REPO / "ci/guest/latency", modules, ctl, disk, ",".join(works), ",".join(sides)]
    return subprocess.Popen([str(c) for c in command], stdout=log, stderr=subprocess.STDOUT)


def measure(disks, works, sides, out):
    """The records of all machines, or None if one failed. As many run at a time as there are processors."""
    modules, ctl = BUILD / "latency/kmod", BUILD / "latency/blksnap_ctl"
    waiting, running, records, good = list(disks), {}, {}, True
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                disk = waiting.pop(0)
                log = open(out / f"{disk}.log", "wb")
                running[disk] = boot(disk, works, sides, modules, ctl, log), log, time.monotonic()
            time.sleep(0.2)
            for disk, (machine, log, begin) in list(running.items()):
                if machine.poll() is None:
                    continue
                log.close()
                del running[disk]
                lines = Path(log.name).read_text(errors="replace").splitlines()
                records[disk] = [json.loads(line[len("@latency "):]) for line in lines if line.startswith("@latency ")]
                say(f"{disk}: {len(records[disk])} runs in {time.monotonic() - begin:.0f} s")
                if machine.returncode:
                    print("\n".join(line for line in lines[-40:] if not line.startswith("@latency ")))
                    good = False
    finally:
        for machine, _, _ in running.values():
            machine.terminate()
            machine.wait()
    return [r for disk in disks for r in records[disk]] if good else None


# --- the report --------------------------------------------------------------------

def keyed(records):
    return {(r["work"], r["disk"], r["side"], r["pass"]): r for r in records}


def rate(record):
    return record["ios"] / record["ns"]


def ratio(runs, key):
    """IOPS as a share of the bare disk's, and the same of p99"""
    raw = runs.get((key[0], key[1], "raw", "raw"))
    if not raw or key not in runs:
        return None, None
    return rate(runs[key]) / rate(raw), runs[key]["p99_ns"] / raw["p99_ns"]


def row_of(runs, key):
    run, work = runs[key], WORKS[key[0]]
    share, p99 = ratio(runs, key)
    size = int(dict(w.split("=") for w in work.job.split())["bytes"])
    copied = f"{run['store_write_bytes'] / (size * run['origin_writes']):.2f}" if key[3] == "first" else "–"
    return [key[0], key[1], key[2], key[3], str(run["ios"]), str(run["ns"]), f"{share:.3f}" if share else "–", str(run["mean_ns"]), str(run["p50_ns"]),
            str(run["p99_ns"]), str(run["max_ns"]), copied, str(run["origin_reads"]), str(run["origin_writes"]), str(run["store_reads"]),
            str(run["store_writes"]), str(run.get("writes_beside", ""))]


HEADS = ["work", "disk", "side", "pass", "I/Os", "ns", "÷ raw", "mean ns", "p50 ns", "p99 ns", "max ns", "copied", "orig r", "orig w", "store r",
         "store w", "beside"]


def report(records):
    runs = keyed(records)
    lines = ["SPDX-License-Identifier: GPL-2.0-only", "",
             "What scripts/bench latency prints. Times are simulated and exact; ÷ raw: I/Os a second as a share of the bare disk's;",
             "copied: bytes written to the store for a byte written; orig and store: reads and writes of these disks; beside: writes",
             "of the job that ran at the same time."]
    for work, plan in WORKS.items():
        keys = sorted((k for k in runs if k[0] == work), key=lambda k: (list(DISKS).index(k[1]), ORDER.index(k[3]), list(SIDES).index(k[2])))
        if keys:
            lines += ["", f"{work}: {plan.title}", ""] + table(HEADS, [row_of(runs, k) for k in keys], 4)
    return "\n".join(lines) + "\n"


# (what, disk, work, pass, figure, limit): the least share of raw, or the greatest of a time.
WANTED = [
    *(("log, of raw", disk, "log", "first", "ratio", least) for disk, least in (("nvme", .85), ("sata", .75), ("hdd", .95), ("cloud", .90))),
    ("sequential 1 MiB, of raw", "flat100", "seq", "first", "ratio", .85),
    ("random, depth 1: ns of one", "flat100", "rand1", "first", "mean_ns", 206_000),
    ("half of a hot region, of raw", "flat100", "half32", "first", "ratio", .70),
    ("70/30 mix, of raw", "flat100", "mix8", "first", "ratio", .77),
    ("image, 1 MiB with 64 pieces: ns of one", "nvme", "image64", "saved", "mean_ns", 524_288),
    ("hot region, same disk, of raw", "nvme", "hot32-same", "first", "ratio", .55),
    ("hot region, same disk, of raw", "sata", "hot32-same", "first", "ratio", .40),
    ("second pass, of raw", "flat100", "rand32", "second", "ratio", .995),
    *(("beside an incremental backup: p99 of raw", disk, "incr32", "first", "p99", 1.2) for disk in ("nvme", "sata", "hdd", "cloud")),
    *(("beside an incremental backup: copied of all", disk, "incr32", "first", "copied", .1) for disk in ("nvme", "sata", "hdd", "cloud")),
]
# How they are printed, and whether the limit is the least
FIGURES = {"ratio": (".3f", True), "p99": (".3f", False), "copied": (".3f", False), "mean_ns": ("", False)}


def wanted_figure(runs, key, figure):
    """None if it was not measured"""
    whole = runs.get((*key[:2], "blksnap", key[3]))
    return {"ratio": lambda: ratio(runs, key)[0], "p99": lambda: ratio(runs, key)[1],
            "copied": lambda: whole and runs[key]["store_write_bytes"] / whole["store_write_bytes"],
            "mean_ns": lambda: runs[key]["mean_ns"]}[figure]()


def targets(records):
    """What is wanted beside what is reached, and where dm-snapshot is ahead."""
    runs, rows = keyed(records), []
    for what, disk, work, name, figure, limit in WANTED:
        key = (work, disk, "selected" if WORKS[work].changed else "blksnap", name)
        value = wanted_figure(runs, key, figure) if key in runs else None
        if value is None:
            continue
        digits, is_least = FIGURES[figure]
        met = value >= limit if is_least else value <= limit
        rows.append([what, disk, work, f"{value:{digits}}", f"{'≥' if is_least else '≤'} {limit:{digits}}", "yes" if met else "NO"])
    lines = table(["wanted", "disk", "work", "reached", "limit", "met"], rows, 3) if rows else []
    behind = []
    for key, run in runs.items():
        others = {side: runs[o] for side in SIDES if side.startswith("dm-") and (o := (*key[:2], side, key[3])) in runs}
        if key[2] == "blksnap" and others:
            best = max(others, key=lambda side: rate(others[side]))
            # Less than that is the place under the head, or the grain of the clock.
            if rate(run) < 0.995 * rate(others[best]):
                behind.append([key[1], key[0], key[3], f"{rate(run) / rate(others[best]):.3f} of {SIDES[best]}"])
    if behind:
        lines += ["", "behind dm-snapshot:"] + table(["disk", "work", "pass", "I/Os a second"], behind, 3)
    return "\n".join(lines)


def charts(records):
    """By name"""
    runs = keyed(records)
    result = {}
    # Not of what is another question, and only for one workload
    sides = [s for s in SIDES if s not in ("raw", "selected")]
    for disk in DISKS:
        # It stands for no kind of disk.
        if disk == "flat100":
            continue
        values = {}
        works = [w for w, plan in WORKS.items() if plan.kind == "write" and not plan.changed]
        for work in works:
            for side in sides:
                share = ratio(runs, (work, disk, side, "first"))[0]
                if share:
                    values[work, SIDES[side]] = (share,) * 3
        if values:
            wanted = {w: [limit] for _, d, w, name, figure, limit in WANTED if d == disk and name == "first" and figure == "ratio"}
            result[f"latency-{disk}"] = bench_plot.bars(f"First writes while a snapshot is held: {disk}", "IOPS ÷ bare disk",
                                                        [SIDES[s] for s in sides], works, values, wanted)
    return result


def check(text):
    """Whether the figures are those that are kept; says so for each disk."""
    def of(lines, disk):
        return [line for line in lines if line.split()[1:2] == [disk]]
    now, kept = text.splitlines(), KEPT.read_text().splitlines()
    good = True
    for disk in DISKS:
        changes = list(difflib.unified_diff(of(kept, disk), of(now, disk), str(KEPT.relative_to(REPO)), "now", lineterm="", n=0))
        print("\n".join([*changes, f"{'FAIL' if changes else 'PASS'} latency: figures of {disk}"]), flush=True)
        good = good and not changes
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS)
    for name, known in (("disk", DISKS), ("work", WORKS), ("side", SIDES)):
        parser.add_argument(f"--{name}", default=",".join(known))
    for name in ("check", "update", "readme"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--out", type=Path, default=BUILD / "latency")
    # Of scripts/bench, before it compiles anything
    parser.add_argument("--plan", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    chosen = []
    for name, known in (("disk", DISKS), ("work", WORKS), ("side", SIDES)):
        names = getattr(args, name).split(",")
        if unknown := [n for n in names if n not in known]:
            parser.error(f"--{name}: no {', '.join(unknown)}; there are {', '.join(known)}")
        chosen.append([n for n in known if n in names or n == "raw"])
    if (args.check or args.update or args.readme) and chosen != [list(DISKS), list(WORKS), list(SIDES)]:
        parser.error("--check, --update and --readme are for all of it")
    if args.plan:
        return
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    records = measure(*chosen, out)
    if records is None:
        sys.exit(1)
    text = report(records)
    (out / "results.txt").write_text(text)
    (out / "results.json").write_text(json.dumps(records, indent=1) + "\n")
    for name, chart in charts(records).items():
        (out / f"{name}.svg").write_text(chart)
        if args.readme:
            (REPO / "doc" / f"{name}.svg").write_text(chart)
    print(text, targets(records), sep="\n")
    if args.update:
        KEPT.write_text(text)
    if args.check and not check(text):
        say("scripts/bench latency --update, if these changes are intended")
        sys.exit(1)
    say(f"results: {out}")


if __name__ == "__main__":
    main()
