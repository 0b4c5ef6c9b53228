#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Tests of the harness: what reads logs, and what decides that an image is right.

A check that cannot fail proves nothing. So here each is shown something wrong.
"""

import argparse
import contextlib
import importlib.machinery
import importlib.util
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import unittest.mock
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "guest")]
import kernel_log      # noqa: E402
import ktap            # noqa: E402
import plan            # noqa: E402
import workload        # noqa: E402


def script(name):
    """A script of this directory, as a module."""
    loader = importlib.machinery.SourceFileLoader(name, str(HERE / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


boot = script("boot")
kselftests = script("kselftests")
kunit = script("kunit")


def outcome(text, suite=""):
    return [(t.name, t.status) for t in ktap.parse(text.splitlines(), suite)]


class Ktap(unittest.TestCase):
    def test_leaves_only(self):
        self.assertEqual(outcome("""
            KTAP version 1
            1..1
                KTAP version 1
                # Subtest: suite
                1..2
                ok 1 a
                not ok 2 b
            not ok 1 suite""".replace("\n            ", "\n")),
            [("suite.a", "pass"), ("suite.b", "fail")])

    def test_time_stamps_and_skips(self):
        self.assertEqual(outcome("[    0.1] KTAP version 1\n[    0.1] 1..2\n"
                                 "[    0.2][    T1] ok 1 a # SKIP no device\n[    0.3] ok 2 b"),
                         [("a", "skip"), ("b", "pass")])

    def test_a_missing_result_is_a_failure(self):
        self.assertIn(("s.(the end)", "fail"), outcome("KTAP version 1\n1..3\nok 1 a\nok 2 b", "s"))

    def test_a_suite_that_stops_is_a_failure(self):
        found = outcome("KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    1..2\n    ok 1 a\nOops")
        self.assertIn(("s", "fail"), found)
        self.assertIn(("s.a", "pass"), found)

    def test_a_suite_that_fails_by_itself(self):
        found = outcome("KTAP version 1\n1..1\n    # Subtest: s\n    1..1\n    ok 1 a\nnot ok 1 s")
        self.assertEqual(found, [("s.a", "pass"), ("s", "fail")])

    def test_nothing(self):
        self.assertEqual(outcome("hello"), [])

    def test_documents_one_after_the_other(self):
        first = "KTAP version 1\n1..2\n    # Subtest: s\n    1..1\n    ok 1 a\nok 1 s\n"
        second = "KTAP version 1\n1..1\n    # Subtest: t\n    1..1\n    ok 1 b\nok 1 t\n"
        self.assertEqual(outcome(first.replace("1..2", "1..1") + second), [("s.a", "pass"), ("t.b", "pass")])
        # What the first one announced is missing, whatever the second one has.
        self.assertIn("fail", [status for _, status in outcome(first + second)])

    def test_durations(self):
        tests = ktap.parse("[1.5] KTAP version 1\n[1.5] 1..2\n[4.0] ok 1 a\n[4.25] ok 2 b".splitlines())
        self.assertEqual([t.seconds for t in tests], [2.5, 0.25])
        self.assertEqual(tests[0].line(), "PASS a [2.5 s]")
        self.assertIsNone(ktap.parse("KTAP version 1\n1..1\nok 1 a".splitlines())[0].seconds)


class KernelLog(unittest.TestCase):
    def test_finds(self):
        for line in ("[ 1.0] WARNING: CPU: 0 PID: 1 at x.c:1", "[ 1.0] BUG: KASAN: slab-use-after-free in f",
                     "[ 1.0] WARNING: possible circular locking dependency detected",
                     "[ 1.0] INFO: task dd:12 blocked for more than 60 seconds.",
                     "unreferenced object 0xffff (size 32):", "[ 1.0] rust_kernel: panicked at x.rs:1"):
            self.assertEqual(len(kernel_log.splats([line])), 1, line)

    def test_leaves_alone(self):
        self.assertEqual(kernel_log.splats(["[ 1.0] blksnap: snapshot taken", "[ 1.0] EXT4-fs warning"]), [])
        self.assertEqual(kernel_log.splats(["[ 1.0] WARNING: expected one"], ["expected one"]), [])

    def test_data_races_of_ours_only(self):
        ruler = "[ 1.0] " + 66 * "="
        race = [ruler, "[ 1.0] BUG: KCSAN: data-race in a / b", "[ 1.0] write to 0x0 of 4 bytes by task 1 on cpu 0:"]
        end = ["[ 1.0] CPU: 1 PID: 0 Comm: swapper/1 Not tainted 7.3.4-blksnap #2", ruler]
        others, ours = [*race, "[ 1.0]  vfs_write+0x1/0x2", *end], [*race, "[ 1.0]  blk_filter_attach+0x1/0x2", *end]
        self.assertEqual(kernel_log.splats(others), [])
        for frame in "_RNvXs_4area+0x4/0x9 [blksnap]", "_RNvMNtNtCs1_6kernel5block3bio+0x4/0x9", "kernel::block::bio+0x4/0x9":
            self.assertEqual(len(kernel_log.splats([*race, "[ 1.0]  " + frame, *end])), 1)
        # What an interrupt does has nothing to do with what it interrupts.
        entry, below = "[ 1.0]  asm_sysvec_apic_timer_interrupt+0x1/0x2", "[ 1.0]  blk_filter_attach+0x1/0x2"
        self.assertEqual(kernel_log.splats([*race, "[ 1.0]  tick+0x1/0x2", entry, below, *end]), [])
        self.assertEqual(len(kernel_log.splats([*race, entry, "[ 1.0] ", "[ 1.0] read to 0x0 of 4 bytes by task 2 on cpu 1:", below, *end])), 1)
        self.assertEqual(len(kernel_log.splats([*race, below, entry, *end])), 1)
        # Nor has what the block layer does with a bio that we have submitted.
        self.assertEqual(kernel_log.splats([*race, *["[ 1.0]  submit_bio+0x1/0x2"] * 4, below, *end]), [])
        self.assertEqual(len(kernel_log.splats(others + ours)), 1)
        self.assertEqual(len(kernel_log.splats(ours + others)), 1)


class Plan(unittest.TestCase):
    def test_the_table_is_that_of_the_plan(self):
        self.assertIn("\n\n" + plan.table() + "\n", (HERE / "README.md").read_text())

    def test_every_test_runs_somewhere_and_whole(self):
        for it in plan.PLANS:
            self.assertIn(plan.ALL, (it.um, it.smp, it.x86), it.test)

    def test_no_plan_is_of_a_test_that_is_not_there(self):
        names = [path.name for place in ("ci/guest", "tools/testing/selftests/blksnap")
                 for path in (HERE.parent / place).glob("test_*.sh")]
        self.assertEqual([it.test for it in plan.PLANS if not any(n.startswith(it.test) for n in names)], [])
        self.assertEqual([n for n in names if not any(n.startswith(it.test) for it in plan.PLANS)], [])


    def test_every_pattern_has_a_case(self):
        for it in plan.PLANS:
            path, = [path for place in ("ci/guest", "tools/testing/selftests/blksnap")
                     for path in (HERE.parent / place).glob(it.test + "*.sh")]
            text = path.read_text()
            cases = re.findall(r'"(.+?)"', text[text.index("\nrun_cases"):])
            # A loop makes descriptions of names of devices.
            if cases[0] == "${cases[@]}":
                cases += re.findall(r"[a-z_]+", text)
            for pattern in filter(None, (it.um, it.smp, it.x86)):
                for part in pattern.split("|"):
                    self.assertTrue([c for c in cases if re.search(part, c)], f"{it.test}: {part}")


class Kselftests(unittest.TestCase):
    NAMES = ["test_01_a.sh", "test_02_b.sh"]

    def choose(self, *tests):
        return kselftests.choose(self.NAMES, argparse.Namespace(plan=None, env=[], tests=list(tests)))

    def outcome(self, text, *names):
        tests = kselftests.outcome(text, {name: "" for name in names})
        return [(t.name, t.status, t.why) for t in tests]

    def test_nothing_that_was_asked_for_is_left_out(self):
        self.assertEqual(self.choose(), dict.fromkeys(self.NAMES, ""))
        self.assertEqual(self.choose("test_02=x|y"), {"test_02_b.sh": "x|y"})
        self.assertEqual(self.choose("test_01=x|y", "_a=z"), {"test_01_a.sh": "(x|y)|(z)"})
        self.assertEqual(self.choose("test_01=x", "test_01"), {"test_01_a.sh": ""})
        with self.assertRaisesRegex(LookupError, "test_03"):
            self.choose("test_01", "test_03")

    def test_a_test_that_did_not_run_or_end_has_failed(self):
        text = "### begin a\n[1.0] TAP version 13\n[1.0] 1..1\n[2.0] ok 1 x\n### end a 0 1\n"
        self.assertEqual(self.outcome(text, "a"), [("a.x", "pass", "")])
        self.assertEqual([t[:2] for t in self.outcome(text, "a", "b")], [("b", "fail"), ("a.x", "pass")])
        cut = text[:text.index("### end")]
        self.assertEqual([t[:2] for t in self.outcome(cut, "a")], [("a.x", "pass"), ("a", "fail")])
        for status in (1, 124, 137):
            self.assertIn("fail", [t[1] for t in self.outcome(text.replace("a 0 1", f"a {status} 1"), "a")])

    def test_a_test_without_results_has_failed(self):
        text = "### begin a\n[1.0] TAP version 13\n[1.0] # nothing\n### end a 0 1\n"
        self.assertEqual(self.outcome(text, "a"), [("a", "fail", "it ended without a result")])
        # One that knows nothing of KTAP says it with its exit status.
        plain = "### begin a\n[1.0] nothing\n### end a 0 1\n"
        self.assertEqual(self.outcome(plain, "a"), [("a", "pass", "")])

    def test_one_run_of_a_name(self):
        with tempfile.TemporaryDirectory() as directory, unittest.mock.patch.object(kselftests, "BUILD", Path(directory)):
            with kselftests.only_run("a"), kselftests.only_run("b"):
                with self.assertRaisesRegex(SystemExit, "--name"):
                    kselftests.only_run("a")
            kselftests.only_run("a").close()

    def test_why_a_test_gave_up(self):
        text = "### begin a\n[1.0] Bail out! no case matches x\n[1.0] # Totals: pass:0 fail:0\n### end a 1 1\n"
        self.assertEqual(self.outcome(text, "a"), [("a", "fail", "Bail out! no case matches x")])


class Kunit(unittest.TestCase):
    def test_a_suite_that_did_not_run_is_missing(self):
        tests = ktap.parse("KTAP version 1\n1..1\n    # Subtest: s\n    1..1\n    ok 1 a\nok 1 s\n".splitlines())
        self.assertEqual(kunit.missing({"s"}, tests), [])
        self.assertEqual(kunit.missing({"s", "t"}, tests), ["t"])

    def test_the_suites_of_the_series_are_found(self):
        names, files = kunit.own_suites()
        self.assertIn("blksnap_change_map", names)
        self.assertIn("drivers/block/blksnap/change_map.rs", files)


class Boot(unittest.TestCase):
    def test_where_the_memory_of_a_machine_fits(self):
        with tempfile.TemporaryDirectory() as directory:
            self.assertEqual(boot.unfit_for_memory(directory, 1), "")
            self.assertIn("less than", boot.unfit_for_memory(directory, 1 << 60))
            self.assertIn("No such", boot.unfit_for_memory(directory + "/none", 1))
            noexec = argparse.Namespace(f_flag=os.ST_NOEXEC, f_bavail=1 << 30, f_frsize=4096)
            with unittest.mock.patch("os.statvfs", return_value=noexec):
                self.assertIn("noexec", boot.unfit_for_memory(directory, 1))

    def test_an_emulated_machine_does_not_test_its_timer(self):
        args = argparse.Namespace(cpus=2, memory="1G", icount=False, shell=False, append=[], kernel="x86_64")
        for kvm in (False, True):
            with tempfile.TemporaryDirectory() as directory:
                argv = boot.Machine.virtme(None, args, "/none", "/none", Path(directory), [], kvm)
            self.assertEqual("--append=no_timer_check" in argv, not kvm)

    def test_what_a_killed_run_left_is_removed(self):
        with tempfile.TemporaryDirectory() as directory, unittest.mock.patch.object(boot, "BUILD", Path(directory)):
            left, other = Path(directory, "a-left"), Path(directory, "a-kernel")
            left.mkdir()
            other.mkdir()
            (left / "lock").touch()
            (left / "disk0").touch()
            with boot.own_directory("a") as first:
                self.assertFalse(left.exists())
                with boot.own_directory("a") as second:
                    self.assertTrue(first.exists() and second.exists())
            self.assertEqual(list(Path(directory).iterdir()), [other])

    def test_the_logs_of_a_run_are_together_and_those_before_it_stay(self):
        with tempfile.TemporaryDirectory() as directory:
            logs = Path(directory, "logs")
            for number in "123":
                results = Path(directory, number)
                (results / "share").mkdir(parents=True)
                (results / "console").write_text(number)
                (results / "share/output").write_text(number)
                boot.keep_logs(results, logs)
            self.assertEqual({path.name for path in logs.iterdir()}, {"console", "output"})
            self.assertEqual((logs / "output").read_text(), "3")
            self.assertEqual((logs.with_name("logs.old") / "console").read_text(), "2")


class TestScript(unittest.TestCase):
    """scripts/test, with parts that only print."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = Path(temporary.name)
        self.build = self.root / "build"
        for name in ("scripts", "ci"):
            (self.root / name).mkdir()
        for name in ("test", "lib.sh"):
            shutil.copy(HERE.parent / "scripts" / name, self.root / "scripts")
        for name in ("scripts/setup", "scripts/series"):
            self.program(name, "")

    def program(self, name, text):
        path = self.root / name
        # Not the file that bash is reading
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def start(self, *parts):
        env = {k: v for k, v in os.environ.items() if not k.startswith("BLKSNAP_")}
        return subprocess.Popen([self.root / "scripts/test", *parts], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                stdin=subprocess.DEVNULL, text=True, env={**env, "BLKSNAP_BUILD": str(self.build)},
                                start_new_session=True)

    def run_parts(self, *parts):
        """The status and the lines of a run."""
        with self.start(*parts) as run:
            out = run.communicate(timeout=60)[0]
        return run.returncode, out.splitlines()

    def wait_for(self, path):
        end = time.monotonic() + 20
        while not path.exists():
            self.assertLess(time.monotonic(), end, path)
            time.sleep(0.02)

    def test_counts_are_those_of_the_lines(self):
        self.program("ci/kselftests", "echo PASS a; echo 'SKIP b (why)'; echo PASS c '[1.5 s]'; echo '     FAIL not a line'")
        status, lines = self.run_parts("um")
        self.assertEqual((status, lines[-1]), (0, "2 passed, 0 failed"))
        self.assertIn("      1.5 s  c", lines)
        self.program("ci/kselftests", "echo PASS a; echo FAIL b; exit 1")
        status, lines = self.run_parts("um")
        self.assertEqual((status, lines[-1]), (1, f"1 passed, 1 failed; logs: {self.build}/logs/test-um.log"))

    def test_a_part_fails_without_a_line_of_it(self):
        self.program("ci/kselftests", "echo PASS a; exit 3")
        status, lines = self.run_parts("um")
        self.assertEqual((status, lines[-1].split(";")[0]), (1, "1 passed, 1 failed"))
        self.assertIn("FAIL um: ended with status 3", lines)
        self.program("ci/kselftests", "echo hello")
        status, lines = self.run_parts("um", "smp")
        self.assertEqual((status, lines[-1].split(";")[0]), (1, "0 passed, 2 failed"))

    def test_the_last_line_names_the_logs_of_the_machine(self):
        dmesg = self.build / "logs/kselftest-um/dmesg"
        self.program("ci/kselftests", f"rm -rf {dmesg.parent}; mkdir -p {dmesg.parent}; echo FAIL a\n"
                                      f"echo '[1.0] blksnap test result: 7 rounds' >{dmesg}; "
                                      f"echo '[1.0] # all    9     4' >{dmesg.parent}/output; exit 1")
        lines = self.run_parts("um")[1]
        self.assertEqual(lines[-1], f"0 passed, 1 failed; logs: {dmesg.parent}")
        self.assertIn("     7 rounds", lines)
        self.assertIn("     9 random calls, 4 of them successful", lines)
        # What an earlier run has left is not this one's.
        time.sleep(1.1)
        self.program("ci/kselftests", "echo FAIL a; exit 1")
        lines = self.run_parts("um")[1]
        self.assertEqual(lines[-1], f"0 passed, 1 failed; logs: {self.build}/logs/test-um.log")
        self.assertNotIn("     7 rounds", lines)

    def test_cases_that_ran_nowhere_are_listed(self):
        self.program("ci/kselftests", """case $2 in
um) echo "PASS um: a.x [1.0 s]"; echo "SKIP um: a.y (no y)"; echo "SKIP um: a.z (no z (here))" ;;
um-smp) echo "SKIP um-smp: a.z (no z)"; echo "SKIP um-smp: a.x (no x)" ;;
x86_64) echo "PASS x86_64: a.y [1.0 s]" ;;
esac""")
        lines = self.run_parts("um", "smp", "boot")[1]
        at = next(i for i, line in enumerate(lines) if "cases that ran in no machine" in line)
        self.assertEqual([line for line in lines[at:] if line.startswith("     ")], ["     a.z (no z (here))"])

    def test_what_failed_is_at_the_end(self):
        self.program("ci/kselftests", "echo FAIL um: a.x; echo '     why'; echo PASS um: a.y; seq 200; exit 1")
        lines = self.run_parts("um")[1]
        at = next(i for i, line in enumerate(lines) if "the tests that failed" in line)
        self.assertEqual(lines[at + 1:-2], ["FAIL um: a.x", "     why"])

    def test_a_log_that_grows(self):
        self.program("ci/kselftests", "for ((i = 0; i < 60000; i++)); do echo PASS $i; done")
        status, lines = self.run_parts("um")
        self.assertEqual((status, lines[-1]), (0, "60000 passed, 0 failed"))
        self.assertEqual([line for line in lines if line.startswith("PASS ")], [f"PASS {i}" for i in range(60000)])

    def test_an_interrupted_run_ends_its_parts(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            pid = self.build / "pid"
            self.program("ci/kselftests", f"echo $$ >{pid}.new; mv {pid}.new {pid}; exec sleep 600")
            with self.start("um") as run:
                self.wait_for(pid)
                # As a terminal does it: bash ignores a SIGINT that a command it waits for did not get.
                os.killpg(run.pid, number)
                self.assertNotEqual(run.wait(60), 0)
            end = time.monotonic() + 60
            while self.runs(pid.read_text().strip()) and time.monotonic() < end:
                time.sleep(0.05)
            self.assertFalse(self.runs(pid.read_text().strip()), number)
            pid.unlink()

    @staticmethod
    def runs(pid):
        """Whether a process runs; one that has ended can be there until init looks."""
        try:
            return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def test_what_a_killed_run_left_is_not_the_next_ones(self):
        begun = self.build / "begun"
        self.program("ci/kselftests", f"echo PASS of the run before; : >{begun}; sleep 3; echo PASS of the run before")
        with self.start("um") as run:
            self.wait_for(begun)
            run.kill()
        self.program("ci/kselftests", "sleep 4; echo FAIL of this run; exit 1")
        status, lines = self.run_parts("um")
        self.assertEqual((status, lines[-1].split(";")[0]), (1, "0 passed, 1 failed"))


class BuildDirectory(unittest.TestCase):
    def test_what_make_does_not_take_is_refused_at_once(self):
        with tempfile.TemporaryDirectory() as directory:
            for name in ("a b", "a:b", "a,b", "a=b"):
                path = Path(directory, name)
                done = subprocess.run(["bash", "-c", '. "$0"', HERE.parent / "scripts/lib.sh"], stderr=subprocess.PIPE,
                                      text=True, env={**os.environ, "BLKSNAP_BUILD": str(path)})
                self.assertEqual(done.returncode, 1)
                self.assertIn(f"ERROR: {path} has", done.stderr)
                self.assertFalse(path.exists())


class Workload(unittest.TestCase):
    """Writers run for a moment on a directory, which then stands for the image."""

    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(dir=os.environ.get("BLKSNAP_BUILD") or HERE)
        cls.root = Path(cls.temporary.name, "fs")
        cls.root.mkdir()
        writer = workload.Churn("disk", cls.root, cls.temporary.name, pause=0)
        end = time.monotonic() + 20
        while writer.counters.words[workload.DELETE + 1] < 5 and time.monotonic() < end:
            time.sleep(0.05)
        cls.trouble = writer.finish()
        cls.counters = writer.counters.copy()

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def problems(self, low=None, high=None):
        low, high = low or self.counters, high or self.counters
        return (workload.check_records(self.root, low, high)[0] +
                workload.check_names(self.root, "disk", low, high)[0])

    @contextlib.contextmanager
    def changed(self, name, change):
        path = self.root / name
        before = path.read_bytes()
        path.write_bytes(change(bytearray(before)))
        yield
        path.write_bytes(before)

    def written(self):
        """A record that is no hole, and belongs to a file of more than one version."""
        for at in range(workload.SLOTS):
            change = self.counters[workload.DONE + at]
            if change > 1 and not workload.is_hole(change):
                return at
        self.fail("the writer wrote too little")

    def record_of(self, at):
        file, slot = divmod(at, workload.RECORDS)
        return f"churn/f{file}", slot * workload.RECORD

    def put(self, at, content):
        name, offset = self.record_of(at)

        def change(data):
            data[offset:offset + workload.RECORD] = content
            return data
        return self.changed(name, change)

    def test_right_image(self):
        self.assertEqual(self.trouble, "")
        self.assertEqual(self.problems(), [])

    def test_flipped_bit(self):
        at = self.written()
        data = bytearray(workload.record(*divmod(at, workload.RECORDS), self.counters[workload.DONE + at]))
        data[2000] ^= 1
        with self.put(at, data):
            self.assertTrue(self.problems())

    def test_old_and_new_content(self):
        at = self.written()
        for step in (-1, 1):
            change = self.counters[workload.DONE + at] + step
            data = bytes(workload.RECORD) if workload.is_hole(change) else \
                workload.record(*divmod(at, workload.RECORDS), change)
            with self.put(at, data):
                self.assertTrue(self.problems(), step)

    def test_content_from_elsewhere(self):
        at = self.written()
        file, slot = divmod(at, workload.RECORDS)
        with self.put(at, workload.record(file, slot + 1, self.counters[workload.DONE + at])):
            self.assertTrue(self.problems())

    def test_torn(self):
        at = self.written()
        place = divmod(at, workload.RECORDS)
        change = self.counters[workload.DONE + at]
        data = workload.record(*place, change)[:512] + workload.record(*place, change - 1)[512:]
        with self.put(at, data):
            self.assertTrue(self.problems())

    def test_lost_zeros(self):
        with self.put(self.written(), bytes(workload.RECORD)):
            self.assertTrue(self.problems())

    def test_names(self):
        number = self.counters[workload.CREATE + 1] - 1
        path = self.root / f"names/n-{number}"
        with self.changed(f"names/n-{number}", lambda d: d[:-1]):
            self.assertTrue(self.problems())
        other = path.with_name(f"n-{number + 1}")
        path.rename(other)
        self.assertTrue(self.problems())
        other.rename(path)
        extra = self.root / "names/r-0"
        extra.write_bytes(workload.name_content("disk", 0))
        self.assertTrue(self.problems())
        extra.unlink()
        self.assertEqual(self.problems(), [])

    def test_what_happened_meanwhile_may_be_either(self):
        at = self.written()
        high = list(self.counters)
        high[workload.STARTED + at] += 1
        low = list(self.counters)
        low[workload.DONE + at] -= 1
        self.assertEqual(self.problems(low=low), [])
        self.assertEqual(self.problems(high=high), [])


if __name__ == "__main__":
    # Ignored in the background of a shell and under nohup.
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_DFL)
    out = io.StringIO()
    result = unittest.main(verbosity=0, exit=False, testRunner=unittest.TextTestRunner(stream=out)).result
    print(out.getvalue() if not result.wasSuccessful() else f"{result.testsRun} tests of the harness pass")
    sys.exit(not result.wasSuccessful())
