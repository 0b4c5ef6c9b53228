// SPDX-License-Identifier: GPL-2.0-only
/*
 * All that one does with a snapshot, over and over, each time with another of the
 * kernel's allocations failing: the first one of a step, then the second, until the step
 * has no more of them. What fails must leave nothing behind: it succeeds when it is
 * called again. The image must have what the device had.
 *
 * The kernel has to be told which allocations may fail, see test_18_faults.sh and
 * Documentation/fault-injection/fault-injection.rst.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/blk-filter.h>
#include <linux/blksnap.h>

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

static int dev, control, nth, progress;
static struct blksnap_snapshot_create snapshot;
static struct blksnap_snapshotinfo image;

/* What the first sectors of the device have. */
static __u64 written;

static __u64 ptr(const void *p)
{
	return (uintptr_t)p;
}

static int call(int fd, unsigned int request, void *arg)
{
	return ioctl(fd, request, arg) < 0 ? errno : 0;
}

static int attach(void)
{
	static struct blkfilter_attach attach = { .name = BLKSNAP_FILTER_NAME };

	return call(dev, BLKFILTER_ATTACH, &attach);
}

static int detach(void)
{
	static struct blkfilter_detach detach = { .name = BLKSNAP_FILTER_NAME };

	return call(dev, BLKFILTER_DETACH, &detach);
}

static int filter(__u32 cmd, void *opt, __u32 optlen)
{
	struct blkfilter_ctl ctl = {
		.name = BLKSNAP_FILTER_NAME,
		.cmd = cmd,
		.optlen = optlen,
		.opt = ptr(opt),
	};

	return call(dev, BLKFILTER_CTL, &ctl);
}

static int create(void)
{
	return call(control, IOCTL_BLKSNAP_SNAPSHOT_CREATE, &snapshot);
}

static int add(void)
{
	return filter(BLKSNAP_FILTER_SNAPSHOTADD, &snapshot.id, sizeof(snapshot.id));
}

static int take(void)
{
	return call(control, IOCTL_BLKSNAP_SNAPSHOT_TAKE, &snapshot.id);
}

static int info(void)
{
	return filter(BLKSNAP_FILTER_SNAPSHOTINFO, &image, sizeof(image));
}

static int cbtinfo(void)
{
	struct blksnap_cbtinfo info;

	return filter(BLKSNAP_FILTER_CBTINFO, &info, sizeof(info));
}

static int cbtmap(void)
{
	__u8 bytes[4];
	struct blksnap_cbtmap map = { .length = sizeof(bytes), .buffer = ptr(bytes) };

	return filter(BLKSNAP_FILTER_CBTMAP, &map, sizeof(map));
}

static int cbtdirty(void)
{
	struct blksnap_sectors sectors = { .count = 8 };
	struct blksnap_cbtdirty dirty = { .count = 1, .dirty_sectors = ptr(&sectors) };

	return filter(BLKSNAP_FILTER_CBTDIRTY, &dirty, sizeof(dirty));
}

static int cbttakes(void)
{
	struct blksnap_uuid ids[4];
	struct blksnap_cbttakes takes = {
		.count = ARRAY_SIZE(ids),
		.size = sizeof(*ids),
		.takes = ptr(ids),
	};

	return filter(BLKSNAP_FILTER_CBTTAKES, &takes, sizeof(takes));
}

static int collect(void)
{
	struct blksnap_uuid ids[16];
	struct blksnap_snapshot_collect collect = {
		.count = ARRAY_SIZE(ids),
		.ids = ptr(ids),
	};

	return call(control, IOCTL_BLKSNAP_SNAPSHOT_COLLECT, &collect);
}

static int wait_event(void)
{
	static struct blksnap_snapshot_event event;
	int error;

	event.id = snapshot.id;
	error = call(control, IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT, &event);
	/* All is well: nothing has happened. */
	if (!error)
		return EEXIST;
	return error == ENOENT ? 0 : error;
}

static int destroy(void)
{
	return call(control, IOCTL_BLKSNAP_SNAPSHOT_DESTROY, &snapshot.id);
}

static const struct {
	const char *name;
	int (*run)(void);
} steps[] = {
	{ "attach", attach },
	{ "create", create },
	{ "add", add },
	{ "take", take },
	{ "info", info },
	{ "cbtinfo", cbtinfo },
	{ "cbtmap", cbtmap },
	{ "cbtdirty", cbtdirty },
	{ "cbttakes", cbttakes },
	{ "collect", collect },
	{ "wait", wait_event },
	{ "destroy", destroy },
	{ "detach", detach },
};

/* Runs a step with its @n-th allocation failing; says whether it had so many. */
static int run_failing(size_t step, unsigned int n, bool *failed)
{
	char text[16];
	ssize_t len;
	int error;

	sprintf(text, "%u", n);
	if (pwrite(nth, text, strlen(text), 0) < 0)
		err(1, "fail-nth");
	error = steps[step].run();
	/* What is left to be counted, 0 if it has failed. */
	len = pread(nth, text, sizeof(text) - 1, 0);
	if (len <= 0 || pwrite(nth, "0", 1, 0) != 1)
		err(1, "fail-nth");
	text[len] = 0;
	*failed = !atoi(text);
	return error;
}

static void check_image(void)
{
	static __u64 block[512] __attribute__((aligned(4096)));
	char path[sizeof(image.image) + 8];
	int fd;

	block[0] = written + 1;
	if (pwrite(dev, block, sizeof(block), 0) != sizeof(block))
		err(1, "the device cannot be written");
	sprintf(path, "/dev/%.*s", (int)sizeof(image.image), image.image);
	fd = open(path, O_RDONLY | O_DIRECT);
	if (fd < 0 || pread(fd, block, sizeof(block), 0) != sizeof(block))
		err(1, "%s cannot be read", path);
	close(fd);
	if (written && block[0] != written)
		errx(1, "the image has %llu instead of %llu", (unsigned long long)block[0],
		     (unsigned long long)written);
	written++;
}

/* A tmpfs calls it that if it is a file that cannot be made. */
static bool is_no_memory(size_t step, int error)
{
	return error == ENOMEM || (error == ENOSPC && steps[step].run == create);
}

/* Says whether the step had so many allocations. */
static bool cycle(size_t step, unsigned int n, unsigned int *refused)
{
	bool failed = false;

	for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
		int error;

		if (i == step)
			error = run_failing(i, n, &failed);
		else
			error = steps[i].run();
		if (i == step && failed && is_no_memory(i, error)) {
			++*refused;
			error = steps[i].run();
		}
		if (error)
			errx(1, "allocation %u of %s failed, and %s gives %s", n,
			     steps[step].name, steps[i].name, strerror(error));
		if (steps[i].run == info)
			check_image();
	}
	return failed;
}

int main(int argc, char **argv)
{
	if (argc != 5)
		errx(1, "usage: %s DEV PATH SECTORS PROGRESS", argv[0]);
	dev = open(argv[1], O_RDWR | O_DIRECT);
	control = open("/dev/" BLKSNAP_CTL, O_RDONLY);
	nth = open("/proc/thread-self/fail-nth", O_RDWR);
	progress = open(argv[4], O_WRONLY | O_CREAT, 0600);
	if (dev < 0 || control < 0 || nth < 0 || progress < 0)
		err(1, "open");
	snapshot.diff_storage_filename = ptr(argv[2]);
	snapshot.diff_storage_limit_sect = atoi(argv[3]);

	for (size_t step = 0; step < ARRAY_SIZE(steps); step++) {
		unsigned int n = 1, refused = 0;

		while (cycle(step, n, &refused)) {
			if (pwrite(progress, &n, sizeof(n), 0) < 0)
				err(1, "%s", argv[4]);
			n++;
		}
		printf("%s: %u allocations, it fails without %u of them\n", steps[step].name, n - 1,
		       refused);
		fflush(stdout);
	}
	return 0;
}
