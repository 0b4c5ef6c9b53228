// SPDX-License-Identifier: GPL-2.0+
/*
 * Attaches a block device filter, detaches it, or prints the counts of the kernel's sample
 * filter, "write_counter". If a call fails, the error is printed and the status is 1.
 *
 * usage: blk-filter attach|detach|count DEVICE FILTER
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

/* As in linux/blk-filter.h, which is not installed everywhere. */
struct filter_attach {
	char name[32];
	uint64_t opt;
	uint32_t optlen;
};

struct filter_detach {
	char name[32];
};

struct filter_ctl {
	char name[32];
	uint32_t cmd;
	uint32_t optlen;
	uint64_t opt;
};

#define FILTER_ATTACH	_IOWR(0x12, 142, struct filter_attach)
#define FILTER_DETACH	_IOWR(0x12, 143, struct filter_detach)
#define FILTER_CTL	_IOWR(0x12, 144, struct filter_ctl)

int main(int argc, char **argv)
{
	uint64_t counts[2];
	struct filter_attach attach = {};
	struct filter_detach detach = {};
	struct filter_ctl ctl = {
		.optlen = sizeof(counts),
		.opt = (uintptr_t)counts,
	};
	int fd, ret;

	if (argc != 4 || strlen(argv[3]) >= sizeof(ctl.name)) {
		fprintf(stderr, "usage: %s attach|detach|count DEVICE FILTER\n", argv[0]);
		return 2;
	}
	fd = open(argv[2], O_RDONLY | O_NONBLOCK);
	if (fd < 0) {
		printf("open: %s\n", strerror(errno));
		return 1;
	}
	if (!strcmp(argv[1], "attach")) {
		strcpy(attach.name, argv[3]);
		ret = ioctl(fd, FILTER_ATTACH, &attach);
	} else if (!strcmp(argv[1], "detach")) {
		strcpy(detach.name, argv[3]);
		ret = ioctl(fd, FILTER_DETACH, &detach);
	} else {
		strcpy(ctl.name, argv[3]);
		ret = ioctl(fd, FILTER_CTL, &ctl);
		if (!ret)
			printf("%llu writes, %llu sectors\n", (unsigned long long)counts[0],
			       (unsigned long long)counts[1]);
	}
	if (ret)
		printf("%s: %s\n", argv[1], strerror(errno));
	return ret ? 1 : 0;
}
