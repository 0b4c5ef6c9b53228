# SPDX-License-Identifier: GPL-2.0-only
"""What scripts/bench measures: the workloads, and what they are measured on. Read by the
host, which plans and reports, and by the virtual machine, which measures."""

from typing import NamedTuple

SECTOR, KIB, MIB, GIB = 512, 1 << 10, 1 << 20, 1 << 30

# Sizes in MiB. The sparse origin takes memory only where it is written. The store has
# room for all that any side copies, and for dm-thin's origin and all of its copies.
ORIGIN, SPARSE, META = 512, 64 << 10, 16
# Every workload on the sparse origin but `cold` stays in this part of it.
REACH = 1024


class Job(NamedTuple):
    """One run of fio."""
    title: str
    rw: str
    bs: int                 # bytes
    depth: int
    ios: int                # how many, 0: the device (or what `span` says) once
    engine: str = "libaio"
    span: int = 0           # MiB from the device's start, 0: all of it
    skip: int = 0           # bytes left out between two of them

    @property
    def reads(self):
        return "read" in self.rw and self.rw != "randrw"


JOBS = {
    "rand1": Job("4 KiB random write, depth 1", "randwrite", 4 * KIB, 1, 12288),
    "rand32": Job("4 KiB random write, depth 32, libaio", "randwrite", 4 * KIB, 32, 49152),
    "uring32": Job("4 KiB random write, depth 32, io_uring", "randwrite", 4 * KIB, 32, 49152, "io_uring"),
    "seq": Job("1 MiB sequential write, depth 4", "write", MIB, 4, 0),
    "mix": Job("4 KiB random, 70 % reads and 30 % writes, depth 32", "randrw", 4 * KIB, 32, 49152),
    "stride": Job("4 KiB write every 256 KiB, depth 32", "write", 4 * KIB, 32, 4096, span=REACH, skip=252 * KIB),
    "cold": Job("4 KiB random write over 64 GiB, depth 32", "randwrite", 4 * KIB, 32, 4096),
    "imageseq": Job("image: 1 MiB sequential read, depth 4", "read", MIB, 4, 0),
    "imagerand": Job("image: 4 KiB random read, depth 32", "randread", 4 * KIB, 32, 49152),
    "memseq": Job("sequential overwrite of 1 GiB", "write", MIB, 4, 0, span=REACH),
    "memplaces": Job("4 KiB write every 64 KiB of 1 GiB", "write", 4 * KIB, 32, 16384, span=REACH, skip=60 * KIB),
}


class Workload(NamedTuple):
    jobs: tuple
    origin: str = "origin"
    kind: str = "write"


# What --only selects from.
WORKLOADS = {
    **{name: Workload((name,)) for name in ("rand1", "rand32", "uring32", "seq", "mix")},
    **{name: Workload((name,), "sparse") for name in ("stride", "cold")},
    "image": Workload(("imageseq", "imagerand"), kind="image"),
    "memory": Workload(("memseq", "memplaces"), "sparse", "memory"),
    "take": Workload((), kind="take"),
}


class Side(NamedTuple):
    title: str
    chunk: int = 0              # KiB
    attached: bool = False      # is measured without a snapshot
    snapshot: bool = True       # is measured with one
    only: tuple = ()            # on these workloads, unless --with names the side


# What --with selects from. "raw" is measured before, between and after all others.
SIDES = {
    "attached": Side("blksnap, filter attached", attached=True, snapshot=False),
    "blksnap": Side("blksnap"),
    "blksnap-ext4": Side("blksnap, file on ext4", only=("seq",)),
    "dm4": Side("dm-snapshot 4 KiB", 4),
    "dm16": Side("dm-snapshot 16 KiB", 16),
    "dm256": Side("dm-snapshot 256 KiB", 256),
    "thin": Side("dm-thin 64 KiB", 64, attached=True),
}

TAKE_DEVICES = (1, 4, 16)
TAKE_REPEATS = 5


def scaled(job, divisor):
    """The job on devices that are smaller by that."""
    return job._replace(ios=job.ios // divisor, span=job.span // divisor)


def sides_of(workload, sides, named):
    """Which of the sides are measured in a workload."""
    chosen = [s for s in sides if not SIDES[s].only or s in named or workload in SIDES[s].only]
    if WORKLOADS[workload].kind == "memory":
        chosen = [s for s in chosen if s != "thin"]
    return chosen


def sessions(plan):
    """The measuring of one boot in its order: (latency in µs, round, workload, side).

    Raw comes first, between all others, and last, so that each of them has two neighbours to
    be compared with. The others change their order from round to round and boot to boot."""
    for latency in plan["latencies"]:
        for number in range(plan["rounds"]):
            for workload in plan["workloads"]:
                kind = WORKLOADS[workload].kind
                # These depend neither on the origin's speed nor on the machine's load.
                if kind in ("take", "memory") and (number or latency != plan["latencies"][0]):
                    continue
                if kind == "take":
                    yield latency, number, workload, "blksnap"
                    continue
                sides = sides_of(workload, plan["sides"], plan["named"])
                turn = (number + plan["boot"] * plan["rounds"]) % max(1, len(sides))
                sides = sides[turn:] + sides[:turn]
                yield latency, number, workload, "raw"
                for side in sides:
                    yield latency, number, workload, side
                    if kind != "memory":
                        yield latency, number, workload, "raw"


def passes(workload, side):
    """(phase, job) of a session, in order; "overwrite" is not reported."""
    work = WORKLOADS[workload]
    if side == "raw":
        return [("raw", j) for j in work.jobs]
    result = [("attached", j) for j in work.jobs] if SIDES[side].attached else []
    if SIDES[side].snapshot:
        if work.kind == "image":
            result += [("idle", j) for j in work.jobs] + [("overwrite", "seq")] + [("overwritten", j) for j in work.jobs]
        else:
            result += [(phase, j) for phase in ("first", "second") for j in work.jobs]
    return result
