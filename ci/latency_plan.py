# SPDX-License-Identifier: GPL-2.0-only
"""What `scripts/bench latency` measures: the disks, the workloads, and what they are measured
on. Read by the host, which reports, and by the virtual machine, which measures."""

from typing import NamedTuple

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
US, MS, S = 1000, 1000_000, 1000_000_000

# In ns and bytes a second; see ci/guest/kmod/model_disk.c. Each stands for a kind of disk, not for
# one that is sold. None has a volatile cache: a flush takes as long as a write, and of the hard
# disk no time.
DISKS = {
    "nvme": {"read_ns": 80 * US, "write_ns": 15 * US, "read_bw": 6500_000_000, "write_bw": 2500_000_000, "channels": 64,
             "flush_ns": 15 * US, "depth": 1023},
    "sata": {"read_ns": 110 * US, "write_ns": 45 * US, "read_bw": 530_000_000, "write_bw": 500_000_000, "channels": 32,
             "read_iops": 95_000, "write_iops": 80_000, "flush_ns": 45 * US, "depth": 32},
    # 7200 rotations a minute
    "hdd": {"read_ns": 100 * US, "write_ns": 100 * US, "read_bw": 200_000_000, "write_bw": 200_000_000, "rotation_ns": 8333_333,
            "seek_min_ns": 500 * US, "seek_max_ns": 14 * MS, "depth": 32},
    "cloud": {"read_ns": MS, "write_ns": MS, "read_bw": 125_000_000, "write_bw": 125_000_000, "read_iops": 3000, "write_iops": 3000,
              "flush_ns": MS, "depth": 128},
    # Each I/O takes as long, whatever its size and however many there are.
    "flat100": {"read_ns": 100 * US, "write_ns": 100 * US, "flush_ns": 100 * US, "depth": 1023},
}
SECTORS = 64 * GIB // 512       # of each disk
HALF = 32 * GIB                 # of a disk that origin and store share: the store's half


class Work(NamedTuple):
    title: str
    job: str                    # for block_load
    kind: str = "write"         # or image, both
    same: bool = False          # origin and store are partitions of one disk
    before: str = ""            # a job that runs first, while the snapshot is held
    changed: str = ""           # a job between an earlier snapshot and this one


def image(pieces):
    return Work(f"image, 1 MiB reads, depth 1, {pieces} pieces of each MiB saved", f"op=read order=sequential bytes={MIB} count=64",
                "image", before=f"op=write order=sequential bytes=4096 unit={MIB // pieces} count={64 * pieces} depth=8")


HOT = f"op=write order=random bytes=4096 span={256 * MIB} depth=32 count=12288"
WORKS = {
    "rand1": Work("4 KiB random over 64 GiB, depth 1", "op=write order=random bytes=4096 count=1024"),
    "rand32": Work("4 KiB random over 64 GiB, depth 32", "op=write order=random bytes=4096 depth=32 count=4096"),
    "hot32": Work("12,288 writes of 4 KiB, random in 256 MiB, depth 32", HOT),
    "hot32-same": Work("the same, store on the same disk", HOT, same=True),
    "half32": Work("8,192 writes of 4 KiB, random in 64 MiB, depth 32", f"op=write order=random bytes=4096 span={64 * MIB} depth=32 count=8192"),
    "zipf32": Work("4 KiB, Zipf over 8 GiB, depth 32", f"op=write order=zipf bytes=4096 span={8 * GIB} depth=32 count=4096"),
    "log": Work("log: 8 KiB and a flush, depth 1", f"op=write order=log bytes={8 * KIB} count=2048"),
    "log-same": Work("the same, store on the same disk", f"op=write order=log bytes={8 * KIB} count=1024", same=True),
    "seq": Work("1 MiB sequential, depth 4", f"op=write order=sequential bytes={MIB} depth=4 count=512"),
    "mix8": Work("70 % reads and 30 % writes of 4 KiB, random in 64 MiB, depth 8",
                 f"op=mixed read_percent=70 order=random bytes=4096 span={64 * MIB} depth=8 count=8192"),
    "stride": Work("4 KiB every 256 KiB, depth 32", f"op=write order=sequential bytes=4096 unit={256 * KIB} depth=32 count=2048"),
    "image1": image(1),
    "image16": image(16),
    "image64": image(64),
    # Reads of the image for half a second, alone and beside writes that are all first ones
    "image-busy": Work("image, 1 MiB reads, depth 4, beside 4 KiB random writes, depth 8",
                       f"op=read order=sequential bytes={MIB} depth=4 count=65536 limit_ns={S // 2}", "both",
                       before=f"op=write order=random bytes=4096 depth=8 count=1048576 limit_ns={S // 2}"),
    # 64 KiB of each 3.125 MiB
    "incr32": Work("4 KiB random over 64 GiB, depth 32, beside an incremental backup when 2 % had changed",
                   "op=write order=random bytes=4096 depth=32 count=4096",
                   changed=f"op=write order=sequential bytes={64 * KIB} unit={3200 * KIB} depth=32 count=20480"),
}
# "raw" is what the others are compared with.
SIDES = {
    "raw": "bare disk",
    "blksnap": "blksnap",
    "selected": "blksnap, what has changed",
    "dm-n4": "dm-snapshot N 4 KiB",
    "dm-p4": "dm-snapshot P 4 KiB",
    "dm-p16": "dm-snapshot P 16 KiB",
}


def passes(work, side):
    """The names of what is measured, in order."""
    kind = WORKS[work].kind
    if kind == "write":
        return ["raw"] if side == "raw" else ["first", "second"]
    return ["raw"] if side == "raw" else {"image": ["saved"], "both": ["idle", "busy"]}[kind]


def applies(work, side):
    return side != "selected" or bool(WORKS[work].changed)


def align_ns(disk):
    """A job begins at a multiple of it, so that its figures do not depend on what ran before: at
    whole seconds, and at the same place under the head."""
    rotation = DISKS[disk].get("rotation_ns", S)
    return S // rotation * rotation
