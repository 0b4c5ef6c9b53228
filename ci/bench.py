#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs the measurements of scripts/bench in the virtual machine, and reports them.
See scripts/bench --help."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
import bench_plan      # noqa: E402
import bench_plot      # noqa: E402
from bench_plan import JOBS, KIB, MIB, SIDES, WORKLOADS      # noqa: E402

REPO = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("BLKSNAP_BUILD") or REPO / "build").resolve()
START = int(os.environ.get("BLKSNAP_T0") or time.time())
QUICK = {"boots": 1, "rounds": 1, "only": "rand32,stride,take", "with": "attached,blksnap,dm16", "latency": "100", "divisor": 8}
FULL = {"boots": 3, "rounds": 1, "only": ",".join(WORKLOADS), "with": ",".join(SIDES), "latency": "100,0", "divisor": 1}


def say(text):
    print(f"[{int(time.time()) - START:4d} s] {text}", flush=True)


# --- measuring ---------------------------------------------------------------------

def guess(session, divisor, known):
    """Seconds that a session takes: what it took last time, or what two emulated processors need."""
    latency, _, workload, side = session
    if (took := known.get(f"{latency} {workload} {side} {divisor}")) is not None:
        return took
    if WORKLOADS[workload].kind == "take":
        return 20
    jobs = [JOBS[j] for _, j in bench_plan.passes(workload, side)]
    return sum(4 + (j.ios / (2000 if j.depth == 1 else 4000) if j.ios else 4) / divisor for j in jobs)


def in_words(seconds):
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} s"


def one_boot(args, boot, lengths, known, out, keep):
    """Measures what is planned for one boot; returns the status that ci/boot ended with. `lengths`
    are the expected seconds of this boot and those after it, `known` learns how long each session took."""
    plan = out / "plan.json"
    plan.write_text(json.dumps(boot))
    order, last = list(bench_plan.sessions(boot)), time.monotonic()
    command = [REPO / "ci/boot", "--kernel", args.kernel, "--name", "bench", "--memory", args.memory,
               "--timeout", str(int(600 + 5 * lengths[0])), *(["--icount"] if args.icount else []),
               "--", REPO / "ci/guest/bench", plan, out / "blksnap_ctl"]
    machine = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True, errors="replace")
    try:
        for line in machine.stdout:
            if not line.startswith("@bench "):
                print(line, end="", flush=True)
                continue
            try:
                record = json.loads(line[len("@bench "):])
            except ValueError:
                continue    # the machine died in the middle of it
            keep(record)
            now, done = time.monotonic(), record.get("done")
            if record["kind"] == "progress":
                latency, _, workload, side = order[done - 1]
                known[f"{latency} {workload} {side} {boot['divisor']}"] = round(now - last, 1)
                if done % 10 == 0:
                    left = sum(guess(s, boot["divisor"], known) for s in order[done:]) + sum(lengths[1:])
                    say(f"  {done} of {len(order)} sessions of this boot; {in_words(left)} left")
            if record["kind"] in ("progress", "boot"):
                last = now
        return machine.wait()
    finally:
        machine.terminate()     # which stops the virtual machine, too
        machine.wait()


def measure(args, plan, out):
    """Boots as often as wanted; returns the records, the boots' own among them."""
    known_file = out / "durations.json"
    try:
        known = json.loads(known_file.read_text())
    except (OSError, ValueError):
        known = {}
    boots = [dict(plan, boot=b) for b in range(args.boots)]
    lengths = [60 + 20 * len(plan["latencies"]) + sum(guess(s, plan["divisor"], known) for s in bench_plan.sessions(p)) for p in boots]
    count = sum(len(list(bench_plan.sessions(p))) for p in boots)
    say(f"{args.boots} boots, {plan['rounds']} rounds in each, {count} sessions: about {in_words(sum(lengths))}")
    load = os.getloadavg()[0]
    if load > 0.5 and not args.icount:
        say(f"NOTE: this machine has other work to do (load {load:.1f}): the figures will be noise")
    records = []
    with open(out / "records.jsonl", "w") as journal:
        def keep(record):
            records.append(record)
            journal.write(json.dumps(record) + "\n")

        for number, boot in enumerate(boots):
            say(f"boot {number + 1} of {args.boots}; what follows comes out of the virtual machine")
            before = os.getloadavg()
            try:
                status = one_boot(args, boot, lengths[number:], known, out, keep)
            except KeyboardInterrupt:
                keep({"kind": "failure", "boot": number, "error": "interrupted"})
                break
            keep({"kind": "load", "boot": number, "before": before, "after": os.getloadavg()})
            if status:
                keep({"kind": "failure", "boot": number, "error": f"ci/boot ended with status {status}"})
    known_file.write_text(json.dumps(known, indent=1))
    return records


def about(args):
    """What the figures were measured with."""
    def output(*command):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return done.stdout.strip()
    linux = BUILD / "linux"
    model = next((line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    try:
        kvm = not args.icount and (BUILD / "stamps/kvm").read_text().split()[1] == "yes"
    except (OSError, IndexError):
        kvm = False
    return {"icount": args.icount, "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "processor": model, "processors": os.cpu_count(),
            "kvm": kvm if args.kvm == "auto" else args.kvm == "yes", "kernel": args.kernel,
            "series": output("git", "-C", str(linux), "describe", "--always", "--dirty", "--exclude=*")}


# --- the figures -------------------------------------------------------------------

def median_of_boots(pairs):
    """(median, least, most) of (boot, value): the median of the boots' medians."""
    by_boot = defaultdict(list)
    for boot, value in pairs:
        by_boot[boot].append(value)
    values = [v for vs in by_boot.values() for v in vs]
    return statistics.median(statistics.median(vs) for vs in by_boot.values()), min(values), max(values)


def figures_of(run, neighbours):
    """What is reported of one run, beside the raw runs before and after it."""
    raw_iops = statistics.mean(n["iops"] for n in neighbours)
    raw_p99 = statistics.mean(n["p99_us"] for n in neighbours)
    writes = run["written_bytes"] / JOBS[run["job"]].bs
    result = {"iops": run["iops"], "mbps": run["bytes_per_second"] / 1e6, "p50_us": run["p50_us"], "p99_us": run["p99_us"],
              "ratio": run["iops"] / raw_iops, "p99_ratio": run["p99_us"] / raw_p99, "late_mib": run["late_bytes"] / MIB,
              "cpu_us_per_io": run["cpu_seconds"] * 1e6 / run["ios"]}
    for disk in ("origin", "store"):
        for key in ("reads", "writes"):
            result[f"{disk}_{key}"] = run[disk][key] / (writes or run["ios"])
    if writes:
        result["copied"] = run["copied_bytes"] / run["written_bytes"]
    if run.get("memory_bytes") is not None:
        result["memory_kib"] = run["memory_bytes"] / KIB
    return result


def cells_of(records):
    """The figures of every (latency, job, side, phase), each as (median, least, most)."""
    raw = defaultdict(list)
    runs = [r for r in records if r["kind"] == "run"]

    def place(run):
        return run["boot"], run["latency"], run["round"], run["workload"], run["job"]

    for run in runs:
        if run["side"] == "raw":
            raw[place(run)].append(run)
    collected = defaultdict(lambda: defaultdict(list))
    for run in runs:
        around = raw[place(run)]
        # Raw runs have such neighbours, too: how much they differ is what means nothing elsewhere.
        near = [r for r in around if r["number"] < run["number"]][-1:] + [r for r in around if r["number"] > run["number"]][:1]
        if run["phase"] == "overwrite" or not near:
            continue
        for name, value in figures_of(run, near).items():
            collected[run["latency"], run["job"], run["side"], run["phase"]][name].append((run["boot"], value))
    return {key: {name: median_of_boots(pairs) for name, pairs in figures.items()} for key, figures in collected.items()}


# --- the targets -------------------------------------------------------------------

# (what, latency in µs, side, [(job, phase, limit)], figure, most that may be copied for a byte written).
# A limit is the least ratio to raw, for p99 the greatest, or None. Job None: all that were measured,
# of which the least counts.
TARGETS = [
    ("raw beside other raw runs, any: noise", None, "raw", [(None, "raw", None)], "ratio", None),
    ("attached, no snapshot, any", None, "attached", [(None, "attached", 0.99)], "ratio", None),
    ("first pass, random 4 KiB depth 1", 100, "blksnap", [("rand1", "first", 0.65)], "ratio", 5),
    ("first pass, depth 32 libaio", 100, "blksnap", [("rand32", "first", 0.85)], "ratio", 2.7),
    ("the same by io_uring", 100, "blksnap", [("uring32", "first", 0.85)], "ratio", None),
    ("first pass, sequential 1 MiB depth 4", 100, "blksnap", [("seq", "first", 0.70)], "ratio", None),
    ("the same, storage a file on ext4", 100, "blksnap-ext4", [("seq", "first", 0.60)], "ratio", None),
    ("first pass, 70/30 mix", 100, "blksnap", [("mix", "first", 0.80)], "ratio", None),
    ("p99 of depth-32 first pass ÷ raw", 100, "blksnap", [("rand32", "first", 2)], "p99_ratio", None),
    ("every write a first touch, 100 µs", 100, "blksnap", [("stride", "first", 0.45)], "ratio", 4),
    ("the same, origin without latency", 0, "blksnap", [("stride", "first", 0.60)], "ratio", 4),
    ("second pass: depth 1 / 32 / sequential / mix", 100, "blksnap",
     [(job, "second", 0.98) for job in ("rand1", "rand32", "seq", "mix")], "ratio", None),
    ("image sequential read, idle / overwritten", 100, "blksnap",
     [("imageseq", "idle", 0.97), ("imageseq", "overwritten", 0.95)], "ratio", None),
    ("image random 4 KiB depth 32, idle / overwritten", 100, "blksnap",
     [("imagerand", "idle", 0.97), ("imagerand", "overwritten", 0.95)], "ratio", None),
]
OTHERS = ("dm4", "dm16", "dm256", "thin")
PER_EXTENT_MOST, SEQUENTIAL_MOST, FROZEN_MOST = 64, MIB, 0.020


def reached(cells, latency, side, wanted, figure, copied):
    """([median or None, in the order wanted], copied or None); for "any" the least and the greatest."""
    def figures(job, phase):
        return cells.get((latency, job, side, phase), {})
    if wanted[0][0] is None:
        all_ = [cell[figure][0] for (_, _, s, phase), cell in cells.items() if s == side and phase == wanted[0][1]]
        return ([min(all_), max(all_)] if all_ else [None]), None
    values = [figures(job, phase).get(figure, (None,))[0] for job, phase, _ in wanted]
    return values, figures(*wanted[0][:2]).get("copied", (None,))[0] if copied is not None else None


def shown(values, copied, sep):
    if all(v is None for v in values):
        return "–"
    text = sep.join("–" if v is None else f"{v:.2f}" for v in values)
    return text + (f" ({copied:.1f})" if copied is not None else "")


def targets_of(cells, memory, takes):
    """Rows of {what, reached, spread, target, met, others}: texts, and met as True, False or None
    for not measured; reached once more as numbers."""
    rows = []
    for what, latency, side, wanted, figure, most in TARGETS:
        any_ = wanted[0][0] is None
        at_most = figure == "p99_ratio"
        values, copied = reached(cells, latency, side, wanted, figure, most)
        limits = [w[2] for w in wanted] * (2 if any_ else 1)
        good = [v <= limit if at_most else v >= limit for v, limit in zip(values, limits) if None not in (v, limit)]
        met = None if not good else all(good) and (copied is None or copied <= most)
        # A part of it that was not measured cannot be met.
        if met and None in values:
            met = None
        sign = "≤" if at_most else "≥"
        limits = [f"{limit:g}" for limit in dict.fromkeys(limits) if limit is not None]
        target = f"{sign} " + " / ".join(limits) + (f" (≤ {most:g})" if most is not None else "") if limits else ""
        between = " to " if any_ else " / "
        others = {o: "–" if side == "blksnap-ext4" else shown(*reached(cells, latency, o, wanted, figure, most), between) for o in OTHERS}
        spread = None
        if len(wanted) == 1 and not any_:
            spread = cells.get((latency, wanted[0][0], side, wanted[0][1]), {}).get(figure)
        rows.append({"what": what, "reached": shown(values, copied, between), "target": target, "met": met, "others": others,
                     "values": values, "copied": copied, "spread": "{1:.2f}..{2:.2f}".format(*spread) if spread else ""})

    def memory_row(what, job, target, value, most):
        def of(side):
            return value(memory[side, job]) if (side, job) in memory else None

        def text(number):
            return "–" if number is None else f"{number:.0f} B" if most < KIB else f"{number / KIB:.0f} KiB"
        mine = of("blksnap")
        rows.append({"what": what, "reached": text(mine), "target": target, "met": None if mine is None else mine <= most,
                     "others": {o: text(of(o)) for o in OTHERS}, "values": [mine], "copied": None, "spread": ""})

    memory_row("memory for a separately saved place", "memplaces", "≤ 64 B", lambda m: m["writes"] / m["ios"], PER_EXTENT_MOST)
    memory_row("memory after a sequential overwrite of 1 GiB", "memseq", "≤ 1 MiB", lambda m: m["writes"], SEQUENTIAL_MOST)
    for count in bench_plan.TAKE_DEVICES:
        inside = takes.get(count, {}).get("frozen_seconds")
        wall = takes.get(count, {}).get("wall_seconds")
        # The whole call is an upper bound of the time in which queues are frozen.
        best, name = (inside, "frozen") if inside else (wall, "whole call")
        rows.append({"what": f"take of {count} devices", "reached": f"{best[0] * 1e3:.1f} ms ({name})" if best else "–",
                     "target": "< 20 ms frozen",
                     "met": True if best and best[0] < FROZEN_MOST else False if inside else None,
                     "others": dict.fromkeys(OTHERS, "–"), "values": [best[0] if best else None], "copied": None,
                     "spread": "{1:.1f}..{2:.1f}".format(*(1e3 * v for v in best)) if best else ""})
    return rows


def memory_of(records):
    """By (side, job): what a snapshot takes, medians in bytes."""
    collected = defaultdict(lambda: defaultdict(list))
    for r in records:
        if r["kind"] == "memory":
            for name, value in {**r["used"], "ios": r["ios"], "copied": r["copied_bytes"]}.items():
                collected[r["side"], r["job"]][name].append(value)
    return {key: {name: statistics.median(v) for name, v in values.items()} for key, values in collected.items()}


def takes_of(records):
    result = {}
    for count in bench_plan.TAKE_DEVICES:
        of = [r for r in records if r["kind"] == "take" and r["devices"] == count]
        result[count] = {name: median_of_boots(values) for name in ("wall_seconds", "frozen_seconds")
                         if (values := [(r["boot"], r[name]) for r in of if r[name] is not None])}
    return result


# --- the report --------------------------------------------------------------------

def table(heads, rows, left=1):
    """Columns as wide as they must be, the first ones to the left."""
    widths = [max(len(r[i]) for r in [heads, *rows]) for i in range(len(heads))]
    return ["  ".join(text.ljust(w) if i < left else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths))).rstrip()
            for row in (heads, ["-" * w for w in widths], *rows)]


def title_of(side):
    return "raw" if side == "raw" else SIDES[side].title


COLUMNS = [
    ("IOPS", "iops", "{:.0f}"), ("MB/s", "mbps", "{:.1f}"), ("p50 µs", "p50_us", "{:.0f}"), ("p99 µs", "p99_us", "{:.0f}"),
    ("÷ raw", "ratio", "{:.2f}"), ("spread", "ratio", None), ("p99 ÷ raw", "p99_ratio", "{:.1f}"), ("copied/B", "copied", "{:.2f}"),
    ("late MiB", "late_mib", "{:.1f}"), ("mem KiB", "memory_kib", "{:.0f}"), ("CPU µs", "cpu_us_per_io", "{:.0f}"),
    ("orig r", "origin_reads", "{:.2f}"), ("orig w", "origin_writes", "{:.2f}"),
    ("store r", "store_reads", "{:.2f}"), ("store w", "store_writes", "{:.2f}"),
]


def detail(cells, latency, job):
    order = ["raw", *SIDES]
    keys = sorted((k for k in cells if k[0] == latency and k[1] == job),
                  key=lambda k: (["raw", "attached", "first", "second", "idle", "overwritten"].index(k[3]), order.index(k[2])))
    rows = []
    for key in keys:
        cell, row = cells[key], [f"{title_of(key[2])}, {key[3]} pass" if key[3] in ("first", "second") else
                                 f"{title_of(key[2])}, {key[3]}" if key[3] not in title_of(key[2]) else title_of(key[2])]
        for _, name, form in COLUMNS:
            value = cell.get(name)
            row.append("–" if value is None else f"{value[1]:.2f}..{value[2]:.2f}" if form is None else form.format(value[0]))
        rows.append(row)
    return table(["", *(head for head, _, _ in COLUMNS)], rows)


def report(data):
    cells, memory, takes = cells_of(data["records"]), memory_of(data["records"]), takes_of(data["records"])
    rows = targets_of(cells, memory, takes)
    if data["plan"]["divisor"] > 1:
        for row in rows:
            row["met"] = None
    plan, meta = data["plan"], data["about"]
    loads = [r for r in data["records"] if r["kind"] == "load"]
    boots = [r for r in data["records"] if r["kind"] == "boot"]
    lines = [f"scripts/bench, {meta['date']} UTC: {len(loads)} boots, {plan['rounds']} rounds each; series {meta['series']}",
             f"kernel {boots[0]['kernel'] if boots else '?'} ({meta['kernel']}), {boots[0]['fio'] if boots else 'fio ?'}; "
             f"{boots[0]['cpus'] if boots else '?'} processors, {'KVM' if meta['kvm'] else 'software emulation'} on {meta['processor']}",
             *(["the clock counts instructions, 1 ns for each, of one processor at a time (QEMU's -icount)"] if meta.get("icount") else []),
             "load of the host at the beginning and end of each boot: " +
             ", ".join(f"{r['before'][0]:.1f}→{r['after'][0]:.1f}" for r in loads),
             f"null_blk: {', '.join(f'{k}={v}' for k, v in plan['null_blk']) or 'defaults'}; "
             f"origin {bench_plan.ORIGIN // plan['divisor']} MiB, all written before; sparse origin {bench_plan.SPARSE >> 10} GiB", ""]
    if plan["divisor"] > 1:
        lines += [f"A quick run, with 1/{plan['divisor']} of the I/Os and of the devices: says nothing about the targets.", ""]
    failures = [r for r in data["records"] if r["kind"] == "failure"]
    if failures:
        lines += ["FAILED, and missing below:"]
        for r in failures:
            where = f", {r['latency']} µs, {r['workload']}, {r['side']}" if "side" in r else ""
            lines.append(f"  boot {r['boot'] + 1}{where}: {r['error']}")
        lines.append("")
    lines += ["Targets: IOPS as a ratio to raw unless it says otherwise; in brackets bytes copied for a byte written", ""]
    lines += table(["", "reached", "spread", "target", "met", *(SIDES[o].title for o in OTHERS)],
                   [[r["what"], r["reached"], r["spread"], r["target"], {True: "yes", False: "NO", None: "–"}[r["met"]],
                     *(r["others"][o] for o in OTHERS)] for r in rows])
    for latency in sorted({k[0] for k in cells}, reverse=True):
        for job in JOBS:
            if any(k[:2] == (latency, job) for k in cells):
                lines += ["", f"{JOBS[job].title}; origin and store take {latency} µs", ""] + detail(cells, latency, job)
    if memory:
        lines += ["", "Memory that the kernel uses more, in KiB: after attach, after take, after the writes and at most meanwhile, the slabs' part of",
                  "the writes, and bytes for each write. What the raw rows say is noise.", ""]
        lines += table(["", "attach", "take", "writes", "peak", "slabs", "a write, B"],
                       [[f"{title_of(side)}, {JOBS[job].title}", *(f"{m[n] / KIB:.0f}" for n in ("attach", "take", "writes", "peak", "slab")),
                         f"{m['writes'] / m['ios']:.0f}"] for (side, job), m in memory.items()])
        lines += ["", "Slab caches that grew by the writes, in KiB, in the last round", ""]
        last = {(r["side"], r["job"]): r["slabs"] for r in data["records"] if r["kind"] == "memory"}
        lines += [f"  {title_of(side)}, {JOBS[job].title}: " + (", ".join(f"{k} {v / KIB:.0f}" for k, v in caches.items() if v >= KIB) or "none")
                  for (side, job), caches in last.items()]
    if any(takes.values()):
        lines += ["", "Take in ms, median (least..most): the whole call, and from the first freeze to the last release as the kernel says", ""]
        lines += table(["", "whole call", "frozen"],
                       [[f"{count} devices", *("{:.1f} ({:.1f}..{:.1f})".format(*(1e3 * v for v in t[n])) if n in t else "–"
                                               for n in ("wall_seconds", "frozen_seconds"))] for count, t in takes.items() if t])
    lines += ["", "spread: least and most of all runs. copied/B: bytes written to the store for a byte written to the origin; of dm-thin, whose",
              "origin is in the store, less the latter. late: what went to the store after fio had ended. mem: how much more memory the",
              "kernel used than before the snapshot. CPU: both processors, for an I/O. orig and store: I/Os of these disks for each write of",
              "the workload, or each read where it has no writes; the origin of dm-thin is in the store."]
    summary = {"about": meta, "plan": plan, "targets": rows, "takes": takes,
               "memory": [{"side": s, "job": j, **m} for (s, j), m in memory.items()],
               "cells": [{"latency_us": k[0], "job": k[1], "side": k[2], "phase": k[3],
                          **{n: dict(zip(("median", "least", "most"), v)) for n, v in c.items()}} for k, c in cells.items()],
               "records": data["records"]}
    return "\n".join(lines) + "\n", summary, cells


def plots(cells, latency=100):
    """The charts by name."""
    def limits(job, phase, figure="ratio"):
        return [limit for _, lat, side, wanted, f, _ in TARGETS if (lat, side, f) == (latency, "blksnap", figure)
                for j, p, limit in wanted if (j, p) == (job, phase)]
    sides = ["blksnap", "dm4", "dm16", "dm256", "thin"]
    names = [SIDES[s].title for s in sides]

    def chart(title, unit, wanted, figure, targets=None, log=False):
        values = {(label, SIDES[s].title): cells[latency, job, s, phase][figure] for label, job, phase in wanted for s in sides
                  if figure in cells.get((latency, job, s, phase), {})}
        if not values:
            return None
        return bench_plot.bars(title, unit, names, [w[0] for w in wanted], values, targets, log)

    writes = [("random\ndepth 1", "rand1"), ("random\ndepth 32", "rand32"), ("random\nio_uring", "uring32"), ("sequential\n1 MiB", "seq"),
              ("mix\n70/30", "mix"), ("first\ntouches", "stride")]
    first = [(label, job, "first") for label, job in writes]
    second = [(label, job, "second") for label, job in writes]
    image = [(f"{label}\n{phase}", job, phase) for label, job in (("sequential", "imageseq"), ("random", "imagerand"))
             for phase in ("idle", "overwritten")]
    charts = {
        "first-pass": chart("Writes while a snapshot is held, first pass", "IOPS ÷ raw", first, "ratio",
                            {label: limits(job, phase) for label, job, phase in first}),
        "second-pass": chart("The same writes again", "IOPS ÷ raw", second, "ratio",
                             {label: limits(job, phase) for label, job, phase in second}),
        "image": chart("Reads of the image", "IOPS ÷ raw", image, "ratio", {label: limits(job, phase) for label, job, phase in image}),
        "copied": chart("Bytes copied for a byte written, first pass", "copied ÷ written", first, "copied", log=True),
    }
    return {name: text for name, text in charts.items() if text}


def main():
    parser = argparse.ArgumentParser(add_help=False)
    for name in ("boots", "rounds"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("only", "with", "latency"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--icount", action="store_true")
    parser.add_argument("--report", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=BUILD / "bench-results")
    parser.add_argument("--null-blk", action="append", default=[])
    parser.add_argument("--divisor", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--kernel", default="bench")
    parser.add_argument("--memory", default="4G")
    parser.add_argument("--kvm", default=os.environ.get("BLKSNAP_KVM", "auto"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    defaults = QUICK if args.quick else FULL
    for name, value in defaults.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    chosen = {"only": WORKLOADS, "with": SIDES}
    for name, known in chosen.items():
        unknown = [n for n in getattr(args, name).split(",") if n not in known]
        if unknown:
            parser.error(f"--{name}: no {', '.join(unknown)}; there are {', '.join(known)}")
    try:
        latencies = [int(n) for n in args.latency.split(",")]
        null_blk = [a.split("=", 1) for a in args.null_blk]
        assert all(len(a) == 2 for a in null_blk) and args.rounds > 0 and args.boots > 0
    except (ValueError, AssertionError):
        parser.error("--latency takes µs, --null-blk NAME=VALUE, --rounds and --boots a number from 1 on")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.report:
        parts, records = [json.loads(p.read_text()) for p in args.report], []
        if len({part["about"].get("icount", False) for part in parts}) > 1:
            parser.error("--report: results with --icount and without it cannot be one")
        for part in parts:
            # Boots of several runs are all different ones.
            first = 1 + max((r["boot"] for r in records), default=-1)
            records += [dict(r, boot=first + r["boot"]) for r in part["records"]]
        data = {"about": parts[0]["about"], "plan": parts[0]["plan"], "records": records}
    else:
        plan = {"latencies": latencies, "rounds": args.rounds, "workloads": [w for w in WORKLOADS if w in args.only.split(",")],
                "sides": [s for s in SIDES if s in getattr(args, "with").split(",")],
                "named": [] if getattr(args, "with") == defaults["with"] else getattr(args, "with").split(","),
                "null_blk": null_blk, "divisor": args.divisor}
        records = measure(args, plan, out)
        data = {"about": about(args), "plan": plan, "records": records}
    text, summary, cells = report(data)
    (out / "results.txt").write_text(text)
    (out / "results.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    print("\n" + text, end="")
    for name, chart in plots(cells).items():
        (out / f"{name}.svg").write_text(chart)
    say(f"all of it: {out}")
    kinds = {r["kind"] for r in data["records"]}
    sys.exit(1 if "failure" in kinds or not kinds & {"run", "take", "memory"} else 0)


if __name__ == "__main__":
    main()
