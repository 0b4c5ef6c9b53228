# SPDX-License-Identifier: GPL-2.0-only
"""Writers whose every byte can be checked, before, at and after a snapshot.

The difficulty: files change all the time, so what did they hold at the snapshot? Every
change is therefore counted in memory that outlives no file system: `started` before the
system call, `done` after it returned. Whoever takes a snapshot copies `done` before and
`started` after the take. What the image holds must lie between the two:

  * a change that was done before the take is in the image (freezing a file system
    writes out all that was written to it, synced or not);
  * a change that started after the take is not.

Every record carries its file, its place and the number of its change, and a checksum, so
that an image cannot pass with what belongs elsewhere or is torn.
"""

import ctypes
import ctypes.util
import hashlib
import json
import mmap
import os
import random
import signal
import struct
import time
import zlib
from pathlib import Path

RECORD = 4096
FILES = 16          # half of them are written with direct I/O
RECORDS = 128
SLOTS = FILES * RECORDS
NAMES_KEPT = 48
HEAD = struct.Struct("<8sIIQ")
MAGIC = b"blksnap!"

# The counters' layout, in 64-bit words.
STARTED, DONE = 0, SLOTS
CREATE, RENAME, DELETE = (2 * SLOTS + 2 * i for i in range(3))    # started, done
PAIR = 2 * SLOTS + 6
OPERATIONS = 2 * SLOTS + 8
WORDS = 2 * SLOTS + 16

libc = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6", use_errno=True)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punch(fd, offset, length):
    """Frees a range of the file: it reads as zeros from then on."""
    if libc.fallocate(fd, 0x01 | 0x02, offset, length):
        raise OSError(ctypes.get_errno(), "fallocate")


class Counters:
    """The words that a writer and a verifier share, in a file of a memory file system."""

    def __init__(self, path, create=False):
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        fd = os.open(path, flags, 0o600)
        if create:
            os.ftruncate(fd, WORDS * 8)
        self.map = mmap.mmap(fd, WORDS * 8)
        os.close(fd)
        self.words = memoryview(self.map).cast("Q")

    def copy(self):
        return list(self.words)


def record(file, slot, change):
    """The bytes of change number `change` of a record; every one is different."""
    head = HEAD.pack(MAGIC, file, slot, change)
    seed = zlib.crc32(head)
    body = (struct.pack("<I", seed) + hashlib.sha256(head).digest()) * (RECORD // 36 + 1)
    data = (head + body)[:RECORD - 4]
    return data + struct.pack("<I", zlib.crc32(data))


def is_hole(change):
    """Some changes free the record instead of writing it."""
    return change % 8 == 7


def name_content(disk, number):
    return (f"{disk} {number} ".encode() * 700)[:1000 + number * 37 % 7000]


# --- what the images and the origin are held against ------------------------------

def allowed(low, high, change):
    return low <= change <= high


def check_records(root, low, high):
    """Compares churn/ with the counters; returns problems and how many records it read."""
    problems, seen = [], 0
    for file in range(FILES):
        path = Path(root, "churn", f"f{file}")
        try:
            data = path.read_bytes()
        except OSError as err:
            problems.append(f"{path.name}: {err}")
            continue
        if len(data) != RECORDS * RECORD:
            problems.append(f"{path.name}: {len(data)} bytes instead of {RECORDS * RECORD}")
            continue
        for slot in range(RECORDS):
            at = file * RECORDS + slot
            lo, hi = low[DONE + at], high[STARTED + at]
            have = data[slot * RECORD:(slot + 1) * RECORD]
            seen += 1
            if not any(have):
                if not any(is_hole(c) for c in range(lo, hi + 1)):
                    problems.append(f"{path.name} record {slot}: zeros, expected change {lo} to {hi}")
                continue
            magic, f, s, change = HEAD.unpack(have[:HEAD.size])
            if magic != MAGIC or have != record(f, s, change):
                problems.append(f"{path.name} record {slot}: torn or not a record")
            elif (f, s) != (file, slot):
                problems.append(f"{path.name} record {slot}: holds record {s} of f{f}")
            elif is_hole(change) or not lo <= change <= hi:
                problems.append(f"{path.name} record {slot}: has change {change}, expected {lo} to {hi}")
    return problems, seen


def check_names(root, disk, low, high):
    """Compares names/ with the counters: created as n-K, renamed to r-K, deleted later."""
    problems = []
    present = set(os.listdir(Path(root, "names")))
    for number in range(max(0, low[DELETE + 1] - 100), high[CREATE] + 3):
        n, r = f"n-{number}" in present, f"r-{number}" in present
        must_go = number < low[DELETE + 1]
        must_not_be = number >= high[CREATE]
        renamed = number < low[RENAME + 1]
        created = number < low[CREATE + 1]
        may_be_gone = number < high[DELETE]
        may_be_renamed = number < high[RENAME]
        if (must_go or must_not_be) and (n or r):
            problems.append(f"names/{number}: is there, but was " + ("deleted before" if must_go else "created after"))
        if created and not may_be_gone and not (n or r):
            problems.append(f"names/{number}: is missing")
        if n and r:
            problems.append(f"names/{number}: has two names")
        if renamed and n:
            problems.append(f"names/{number}: has its old name")
        if r and not may_be_renamed:
            problems.append(f"names/{number}: was renamed after the take")
        for name in (f"n-{number}", f"r-{number}"):
            if name in present:
                data = Path(root, "names", name).read_bytes()
                if data != name_content(disk, number) and (created or data):
                    problems.append(f"names/{name}: wrong content")
    known = {f"{p}-{k}" for p in "nr" for k in range(max(0, low[DELETE + 1] - 100), high[CREATE] + 3)}
    problems += [f"names/{name}: nobody made it" for name in sorted(present - known)]
    return problems, len(present)


def read_pair(root):
    return int(Path(root, "pair").read_bytes()[:20])


# --- the writers ------------------------------------------------------------------

class Stop(Exception):
    pass


class Writer:
    """A process that changes files until it is told to stop."""

    def __init__(self, name, state):
        self.name, self.state, self.stopping = name, Path(state), False
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                signal.signal(signal.SIGTERM, self.stop)
                self.run()
                status = 0
            except BaseException as err:
                (self.state / f"{name}.error").write_text(f"{type(err).__name__}: {err}")
            finally:
                os._exit(status)

    def stop(self, *_):
        self.stopping = True

    def run(self):
        raise NotImplementedError

    def finish(self):
        """Stops the process; returns what went wrong with it."""
        os.kill(self.pid, signal.SIGTERM)
        _, status = os.waitpid(self.pid, 0)
        error = self.state / f"{self.name}.error"
        return error.read_text() if error.exists() else f"status {status}" if status else ""


class Churn(Writer):
    """Overwrites and frees records; creates, renames and deletes files."""

    def __init__(self, disk, root, state, pause=0.004):
        self.disk, self.root, self.pause = disk, Path(root), pause
        self.counters = Counters(Path(state, f"{disk}.counters"), create=True)
        (self.root / "churn").mkdir()
        (self.root / "names").mkdir()
        for file in range(FILES):
            with open(self.root / "churn" / f"f{file}", "wb") as out:
                for slot in range(RECORDS):
                    out.write(record(file, slot, 0))
        super().__init__(f"churn-{disk}", state)

    def run(self):
        words, rng = self.counters.words, random.Random(self.disk)
        direct = mmap.mmap(-1, RECORD)
        fds = [os.open(self.root / "churn" / f"f{i}", os.O_RDWR | (os.O_DIRECT if i % 2 else 0)) for i in range(FILES)]
        while not self.stopping:
            # A run of neighbours, as a database or a log would write them.
            file, first = rng.randrange(FILES), rng.randrange(RECORDS)
            for slot in range(first, min(RECORDS, first + rng.choice((1, 1, 2, 4, 16)))):
                at = file * RECORDS + slot
                change = words[STARTED + at] + 1
                words[STARTED + at] = change
                if is_hole(change):
                    punch(fds[file], slot * RECORD, RECORD)
                elif file % 2:
                    direct[:] = record(file, slot, change)
                    os.pwritev(fds[file], [direct], slot * RECORD)
                else:
                    os.pwrite(fds[file], record(file, slot, change), slot * RECORD)
                words[DONE + at] = change
                words[OPERATIONS] += 1
            if rng.random() < 0.1:
                os.fdatasync(fds[file])
            if rng.random() < 0.3:
                self.names(words)
            time.sleep(self.pause)

    def names(self, words):
        names, number = self.root / "names", words[CREATE]
        words[CREATE] = number + 1
        fd = os.open(names / f"n-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, name_content(self.disk, number))
        os.close(fd)
        words[CREATE + 1] = number + 1
        if number >= 4:
            words[RENAME] = number - 3
            os.rename(names / f"n-{number - 4}", names / f"r-{number - 4}")
            words[RENAME + 1] = number - 3
        if number >= NAMES_KEPT:
            words[DELETE] = number - NAMES_KEPT + 1
            os.unlink(names / f"r-{number - NAMES_KEPT}")
            words[DELETE + 1] = number - NAMES_KEPT + 1
        words[OPERATIONS] += 1


class Pair(Writer):
    """Writes one number to both disks, always the first disk first.

    At any one moment the first is equal to the second or one ahead: two images
    in which it is otherwise are not of one moment.
    """

    def __init__(self, roots, state):
        self.roots = roots
        self.counters = Counters(Path(state, "pair.counters"), create=True)
        for root in roots:
            Path(root, "pair").write_bytes(b"0".zfill(20).ljust(RECORD))
        super().__init__("pair", state)

    def run(self):
        words, number = self.counters.words, 0
        fds = [os.open(Path(root, "pair"), os.O_RDWR) for root in self.roots]
        while not self.stopping:
            number += 1
            words[PAIR] = number
            for fd in fds:
                os.pwrite(fd, str(number).zfill(20).encode().ljust(RECORD), 0)
                if number % 16 == 0:
                    os.fdatasync(fd)
            words[PAIR + 1] = number
            time.sleep(0.003)


class Vandal(Writer):
    """Waits for the take, then ruins the files whose content at the take is known.

    It keeps account of what each file is to hold in the end, in a file that it leaves
    when it stops: {path: sha256 or None for a file that is gone}.
    """

    def __init__(self, disk, root, state, taken, pause=0.01):
        self.disk, self.root, self.taken, self.pause = disk, Path(root), Path(taken), pause
        super().__init__(f"vandal-{disk}", state)

    def run(self):
        rng, expected = random.Random("vandal" + self.disk), {}
        ruined = Counters(self.state / f"{self.disk}.counters").words
        files = sorted(p for p in (self.root / "tree").rglob("*") if p.is_file() and not p.is_symlink())
        rng.shuffle(files)
        while not self.taken.exists() and not self.stopping:
            time.sleep(0.02)
        for number, path in enumerate(files):
            if self.stopping:
                break
            self.ruin(path, number, rng, expected)
            ruined[OPERATIONS + 1] += 1
            time.sleep(self.pause)
        (self.state / f"vandal-{self.disk}.json").write_text(json.dumps(expected))
        while not self.stopping:
            time.sleep(0.05)

    def ruin(self, path, number, rng, expected):
        name, kind = str(path.relative_to(self.root)), number % 7
        size = path.stat().st_size
        noise = rng.randbytes(min(max(size, 1), 1 << 16))
        if kind == 0:                                   # overwrite in place
            with open(path, "r+b") as file:
                for at in range(0, max(size, 1), len(noise)):
                    file.write(noise[:max(size, 1) - at])
        elif kind == 1:                                 # delete: with the mount option also a discard
            path.unlink()
        elif kind == 2:                                 # cut and let it grow again
            os.truncate(path, size // 2)
            with open(path, "ab") as file:
                file.write(noise)
        elif kind == 3:                                 # free the first block
            fd = os.open(path, os.O_RDWR)
            punch(fd, 0, RECORD)
            os.close(fd)
        elif kind == 4:                                 # replace, as an editor does
            new = path.with_name(path.name + ".new")
            new.write_bytes(noise)
            os.replace(new, path)
        elif kind == 5:                                 # rename
            os.rename(path, path.with_name("was-" + path.name))
            expected[name] = None
            path = path.with_name("was-" + path.name)
        else:                                           # overwrite one block, synced
            fd = os.open(path, os.O_RDWR | os.O_DSYNC)
            os.pwrite(fd, noise[:RECORD], 0)
            os.close(fd)
        name = str(path.relative_to(self.root))
        expected[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
