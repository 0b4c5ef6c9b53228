# SPDX-License-Identifier: GPL-2.0-only
"""Model disks, and what is compared on them; for the benchmarks in user-mode Linux."""

import functools
import subprocess
import time
from pathlib import Path

from latency_plan import HALF, MIB, SECTORS

MODEL = Path("/sys/module/model_disk/parameters")


def run(*command):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: status {done.returncode}: {(done.stdout + done.stderr).strip()[-500:]}")
    return done.stdout.strip()


class Control:
    """The tests' program for blksnap's ioctls"""

    path = None


def ctl(*arguments):
    return run(Control.path, *arguments)


def load_modules(directory):
    for name in ("model_disk", "block_load"):
        run("insmod", directory / f"{name}.ko")


def load(device, job, align=0):
    """One job of block_load; returns its figures."""
    with open("/dev/block_load", "r+b", buffering=0) as file:
        file.write(f"dev={device} {job} align_ns={align}".encode())
        return {name: int(value) for name, value in (line.split() for line in file.read(4096).decode().splitlines())}


class Disk:
    """A model disk, or a partition of one."""

    def __init__(self, name):
        self.path = Path("/dev") / name
        self.stat = Path("/sys/class/block") / name / "stat"
        self.sectors = int((self.stat.parent / "size").read_text())

    def counters(self):
        words = [int(w) for w in self.stat.read_text().split()]
        return {"reads": words[0], "read_bytes": words[2] * 512, "writes": words[4], "write_bytes": words[6] * 512}

    def busy(self):
        return int(self.stat.read_text().split()[8])


def add_disk(undo, model, name):
    values = {"name": name, "sectors": SECTORS, **model}
    (MODEL / "add").write_text(" ".join(f"{k}={v}" for k, v in values.items()))
    undo.callback((MODEL / "remove").write_text, name)


def disks(undo, model, same=False):
    """(origin, store)"""
    add_disk(undo, model, "origin")
    if not same:
        add_disk(undo, model, "store")
        return Disk("origin"), Disk("store")
    for number, start in ((1, MIB), (2, HALF)):
        run("addpart", "/dev/origin", number, start // 512, (HALF - MIB) // 512)
        undo.callback(run, "delpart", "/dev/origin", number)
    return Disk("origin1"), Disk("origin2")


# --- what is compared: (device that is written, image, a function that fails if the snapshot is broken);
# `change` writes to the origin before that

def nothing():
    pass


def raw(undo, origin, store, change=nothing):
    change()
    return origin.path, origin.path, lambda: None


def info_of(path):
    return dict(line.split(None, 1) for line in ctl("info", path).splitlines())


def blksnap(undo, origin, store, change=nothing, select=False):
    def check():
        if (error := info_of(origin.path)["error"]) != "0":
            raise RuntimeError(f"the snapshot is broken: error {error}")

    def created():
        snapshot = ctl("create", store.path, 0)
        ctl("add", origin.path, snapshot)
        return snapshot

    ctl("attach", origin.path)
    undo.callback(ctl, "detach", origin.path)
    if select:
        earlier = created()
        ctl("take", earlier)
        ctl("destroy", earlier)
    change()
    snapshot = created()
    undo.callback(ctl, "destroy", snapshot)
    if select:
        ctl("select", origin.path, ctl("cbttakes", origin.path).split()[-1])
    ctl("take", snapshot)
    return origin.path, Path("/dev") / info_of(origin.path)["image"], check


def dm_snapshot(undo, origin, store, kind, kibibytes, change=nothing):
    def table(name, *target):
        run("dmsetup", "create", "--noudevsync", "--verifyudev", name, "--table", " ".join(map(str, (0, origin.sectors, *target))))
        undo.callback(run, "dmsetup", "remove", "--noudevsync", name)
        return Path("/dev/dm-" + run("dmsetup", "info", "-c", "--noheadings", "-o", "minor", name))

    def check():
        status = run("dmsetup", "status", "image").split()[3]
        if "/" not in status:
            raise RuntimeError(f"the snapshot is broken: {status}")

    change()
    image = table("image", "snapshot", origin.path, store.path, kind, kibibytes * 2)
    return table("origin", "snapshot-origin", origin.path), image, check


def side_of(name):
    if name.startswith("dm-"):
        return lambda undo, origin, store, *change: dm_snapshot(undo, origin, store, name[3].upper(), int(name[4:]), *change)
    return {"raw": raw, "blksnap": blksnap, "selected": functools.partial(blksnap, select=True)}[name]


def settle(store):
    """Waits until nothing goes to the store any more."""
    quiet, seen = 0, None
    while quiet < 10:
        time.sleep(0.1)
        now = store.counters()
        quiet = 0 if store.busy() or now != seen else quiet + 1
        seen = now
