// SPDX-License-Identifier: GPL-2.0-only
/*
 * The only program in the virtual machine of scripts/zero-cost: counts the
 * instructions that bios take, from the system call down to their completion.
 *
 * QEMU's -icount makes the time-stamp counter one of instructions; the first
 * thing printed, the count of a loop of known length, shows that it does.
 *
 * usage: init [other|self]
 *
 *   other  attach the pass-through filter to a disk that is not measured
 *   self   attach it to the disks that are
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/blkpg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
/* The series' own, since it is newer than the C library. */
#include <linux/blk-filter.h>

/* Short passes, so that most of them see no timer tick. */
#define PASSES	100
#define BIOS	1000
#define BATCH	20
#define LOOPS	1000000UL

static char buf[1 << 20] __attribute__((aligned(4096)));
static uint64_t counts[PASSES];

static inline uint64_t now(void)
{
	uint32_t low, high;

	asm volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

/*
 * One instruction to load, then two for each turn. The least of some tries: the kernel
 * may have something to do.
 */
static uint64_t calibrate(void)
{
	uint64_t least = UINT64_MAX;
	int i;

	for (i = 0; i < 9; i++) {
		uint64_t start = now(), count;

		asm volatile("mov %0, %%rcx\n"
			     "1: dec %%rcx\n"
			     "jnz 1b\n" : : "i"(LOOPS) : "rcx", "cc");
		count = now() - start;
		if (count < least)
			least = count;
	}
	return least;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void result(const char *name, unsigned long units)
{
	uint64_t total = 0;
	int i;

	for (i = 0; i < PASSES; i++)
		total += counts[i];
	qsort(counts, PASSES, sizeof(counts[0]), compare);
	printf("COUNT %s %lu %d %lu %lu %lu %lu\n", name, units, PASSES,
	       counts[0], counts[PASSES / 2], counts[PASSES - 1], total);
}

static int open_disk(const char *path)
{
	int fd = open(path, O_RDWR | O_DIRECT);

	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

static void one_by_one(const char *name, const char *path, int write,
		       size_t size, int bios)
{
	int fd = open_disk(path);
	int pass, i;

	/* The first pass fills caches, and a brd with pages. */
	for (pass = -1; pass < PASSES; pass++) {
		uint64_t start = now();

		for (i = 0; i < bios; i++) {
			off_t at = (off_t)(i % 64) * size;
			ssize_t done = write ? pwrite(fd, buf, size, at) :
					       pread(fd, buf, size, at);
			if (done != (ssize_t)size)
				err(1, "%s", name);
		}
		if (pass >= 0)
			counts[pass] = now() - start;
	}
	close(fd);
	result(name, bios);
}

/* Several at once: they are plugged, and take requests allocated in advance. */
static void batches(const char *name, const char *path)
{
	struct iocb iocbs[BATCH] = {}, *pointers[BATCH];
	struct io_event events[BATCH];
	aio_context_t context = 0;
	int fd = open_disk(path);
	int pass, i, j;

	if (syscall(SYS_io_setup, BATCH, &context))
		err(1, "io_setup");
	for (j = 0; j < BATCH; j++) {
		pointers[j] = &iocbs[j];
		iocbs[j].aio_lio_opcode = IOCB_CMD_PWRITE;
		iocbs[j].aio_fildes = fd;
		iocbs[j].aio_buf = (uint64_t)buf;
		iocbs[j].aio_nbytes = 4096;
		/* With gaps: neighbours would be merged. */
		iocbs[j].aio_offset = (off_t)j * 8192;
	}
	for (pass = -1; pass < PASSES; pass++) {
		uint64_t start = now();

		for (i = 0; i < BIOS / BATCH; i++)
			if (syscall(SYS_io_submit, context, BATCH, pointers) != BATCH ||
			    syscall(SYS_io_getevents, context, BATCH, BATCH, events, NULL) != BATCH)
				err(1, "%s", name);
		if (pass >= 0)
			counts[pass] = now() - start;
	}
	close(fd);
	result(name, BIOS);
}

static void add_partition(const char *disk)
{
	struct blkpg_partition part = {
		.start = 1 << 20, .length = 64 << 20, .pno = 1,
	};
	struct blkpg_ioctl_arg arg = {
		.op = BLKPG_ADD_PARTITION, .datalen = sizeof(part), .data = &part,
	};
	int fd = open(disk, O_RDONLY);

	if (fd < 0 || ioctl(fd, BLKPG, &arg))
		err(1, "%s: adding a partition", disk);
	close(fd);
}

static void attach(const char *disk)
{
	struct blkfilter_attach arg = { .name = "pass" };
	int fd = open(disk, O_RDONLY);

	if (fd < 0 || ioctl(fd, BLKFILTER_ATTACH, &arg))
		err(1, "%s: attaching a filter", disk);
	close(fd);
}

static void load(const char *path)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
		err(1, "%s", path);
	close(fd);
}

static void stop(void)
{
	fflush(stdout);
	reboot(RB_AUTOBOOT);
}

int main(int argc, char **argv)
{
	const char *filter = argc > 1 ? argv[1] : "";

	mkdir("/dev", 0755);
	if (mount("dev", "/dev", "devtmpfs", 0, NULL) ||
	    !freopen("/dev/console", "w", stdout) || !freopen("/dev/console", "w", stderr))
		return 1;
	atexit(stop);

	add_partition("/dev/nullb0");
	if (*filter)
		load("/filter.ko");
	if (!strcmp(filter, "other")) {
		attach("/dev/nullb1");
	} else if (!strcmp(filter, "self")) {
		attach("/dev/nullb0");
		attach("/dev/ram0");
		attach("/dev/dm-0");
	}

	printf("CALIBRATION %lu %lu\n", 2 * LOOPS + 1, calibrate());

	one_by_one("mq-read", "/dev/nullb0", 0, 4096, BIOS);
	one_by_one("mq-write", "/dev/nullb0", 1, 4096, BIOS);
	one_by_one("mq-partition-write", "/dev/nullb0p1", 1, 4096, BIOS);
	batches("mq-plugged-write", "/dev/nullb0");
	one_by_one("bio-read", "/dev/ram0", 0, 4096, BIOS);
	one_by_one("bio-write", "/dev/ram0", 1, 4096, BIOS);
	one_by_one("bio-write-512", "/dev/ram0", 1, 512, BIOS);
	one_by_one("stacked-write", "/dev/dm-0", 1, 4096, BIOS);
	printf("DONE\n");
	return 0;
}
