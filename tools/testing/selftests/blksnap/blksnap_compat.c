// SPDX-License-Identifier: GPL-2.0-only
/*
 * Calls the ioctls of block device filters and of blksnap as a 32-bit program does:
 * test_17_compat.sh compares what it prints with what blksnap_ctl does. The commands,
 * their arguments and output are those of blksnap_ctl.
 *
 * It is built with nolibc, since a 32-bit C library is hardly ever there.
 */
#include <linux/blk-filter.h>
#include <linux/blksnap.h>

/* Where the layouts on i386 are not those on x86-64, the kernel must know both. */
static_assert(sizeof(struct blkfilter_attach) == 44, "no padding at the end");
static_assert(sizeof(struct blksnap_cbtinfo) == 36, "no padding at the end");
static_assert(sizeof(struct blksnap_cbtdirty) == 12, "no padding inside");
static_assert(sizeof(struct blksnap_snapshot_collect) == 12, "no padding inside");
static_assert(sizeof(struct blksnap_cbttakes) == 40, "the same for all");
static_assert(sizeof(struct blksnap_snapshot_create_empty) == 24, "the same for all");
static_assert(sizeof(struct blksnap_storage_append) == 40, "the same for all");
static_assert(sizeof(struct blksnap_storage_limit) == 24, "the same for all");
static_assert(sizeof(struct blksnap_storage_low_space) == 24, "the same for all");
static_assert(sizeof(struct blksnap_storage_info) == 64, "the same for all");
static_assert(BLKFILTER_ATTACH == 0xc02c128e, "the size is a part of it");
static_assert(IOCTL_BLKSNAP_SNAPSHOT_COLLECT == 0x800c5604, "the size is a part of it");

#define CONTROL		"/dev/" BLKSNAP_CTL
#define MAX_IDS		64
#define MAX_RANGES	16
#define MAX_TAKES	254
#define MAX_MAP		65536

static char **argv;
static int argc;

static void fail(void)
{
	static const struct {
		int error;
		const char *name;
	} names[] = {
#define NAME(e) { e, #e }
		NAME(EPERM), NAME(ENOENT), NAME(ESRCH), NAME(ENOTTY), NAME(EFAULT),
		NAME(EBUSY), NAME(ENODEV), NAME(EINVAL), NAME(ERANGE), NAME(EDEADLK),
		NAME(ENODATA), NAME(EALREADY),
#undef NAME
	};
	int error = errno;

	for (unsigned int i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (names[i].error == error)
			fprintf(stderr, "%s\n", names[i].name);
	exit(error);
}

static unsigned long long number(const char *text)
{
	return strtoull(text, NULL, 0);
}

static int open_file(const char *path)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		fail();
	return fd;
}

static void control(unsigned long request, void *arg)
{
	if (ioctl(open_file(CONTROL), request, arg) < 0)
		fail();
}

static void filter_ctl(__u32 cmd, void *opt, __u32 optlen)
{
	struct blkfilter_ctl ctl = {
		.name = BLKSNAP_FILTER_NAME,
		.cmd = cmd,
		.optlen = optlen,
		.opt = (unsigned long)opt,
	};

	if (ioctl(open_file(argv[1]), BLKFILTER_CTL, &ctl) < 0)
		fail();
}

static unsigned int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return (c | 0x20) - 'a' + 10;
}

static void read_id(const char *text, struct blksnap_uuid *id)
{
	unsigned int n = 0;

	memset(id, 0, sizeof(*id));
	for (; *text && n < 2 * sizeof(id->b); text++) {
		if (*text == '-')
			continue;
		id->b[n / 2] = id->b[n / 2] << 4 | digit(*text);
		n++;
	}
}

static void print_id(const struct blksnap_uuid *id)
{
	for (unsigned int i = 0; i < sizeof(id->b); i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			putchar('-');
		putchar("0123456789abcdef"[id->b[i] >> 4]);
		putchar("0123456789abcdef"[id->b[i] & 15]);
	}
	putchar('\n');
}

static void check_behind(const __u8 *bytes, unsigned int len)
{
	for (unsigned int i = 0; i < len; i++)
		if (bytes[i] != 0xa5)
			printf("byte %u behind the structure was written\n", i);
}

static void do_version(void)
{
	struct blksnap_version v;

	control(IOCTL_BLKSNAP_VERSION, &v);
	printf("%u.%u.%u.%u\n", v.major, v.minor, v.revision, v.build);
}

static void do_attach(void)
{
	struct blkfilter_attach attach = { .name = BLKSNAP_FILTER_NAME };

	if (ioctl(open_file(argv[1]), BLKFILTER_ATTACH, &attach) < 0)
		fail();
}

static void do_detach(void)
{
	struct blkfilter_detach detach = { .name = BLKSNAP_FILTER_NAME };

	if (ioctl(open_file(argv[1]), BLKFILTER_DETACH, &detach) < 0)
		fail();
}

static void do_cbtinfo(void)
{
	struct {
		struct blksnap_cbtinfo info;
		__u8 behind[4];
	} arg;

	memset(&arg, 0xa5, sizeof(arg));
	filter_ctl(BLKSNAP_FILTER_CBTINFO, &arg.info, sizeof(arg.info));
	check_behind(arg.behind, sizeof(arg.behind));
	printf("capacity %llu\nblock_size %u\nblock_count %u\nnumber %u\ngeneration ",
	       (unsigned long long)arg.info.device_capacity, arg.info.block_size,
	       arg.info.block_count, arg.info.changes_number);
	print_id(&arg.info.generation_id);
}

static void do_cbtmap(void)
{
	static __u8 buffer[MAX_MAP];
	struct blksnap_cbtmap map = {
		.offset = number(argv[2]),
		.length = number(argv[3]),
		.buffer = (unsigned long)buffer,
	};

	if (map.length > sizeof(buffer))
		exit(200);
	filter_ctl(BLKSNAP_FILTER_CBTMAP, &map, sizeof(map));
	for (__u32 i = 0; i < map.length; i++)
		printf("%u\n", buffer[i]);
}

static void do_cbttakes(void)
{
	static struct blksnap_uuid ids[MAX_TAKES];
	struct {
		struct blksnap_cbttakes takes;
		__u8 behind[4];
	} arg = {
		.takes.count = argc > 2 ? number(argv[2]) : MAX_TAKES,
		.takes.size = sizeof(*ids),
		.takes.takes = (unsigned long)ids,
	};
	struct blkfilter_ctl ctl = {
		.name = BLKSNAP_FILTER_NAME,
		.cmd = BLKSNAP_FILTER_CBTTAKES,
		.optlen = sizeof(arg.takes),
		.opt = (unsigned long)&arg.takes,
	};
	int ret;

	memset(arg.behind, 0xa5, sizeof(arg.behind));
	ret = ioctl(open_file(argv[1]), BLKFILTER_CTL, &ctl);
	check_behind(arg.behind, sizeof(arg.behind));
	if (ret < 0 && errno == ENODATA)
		printf("%u\n", arg.takes.count);
	if (ret < 0)
		fail();
	print_id(&arg.takes.generation_id);
	for (__u32 i = 0; i < arg.takes.count; i++)
		print_id(&ids[i]);
}

static void do_cbtdirty(void)
{
	struct blksnap_sectors ranges[MAX_RANGES];
	struct blksnap_cbtdirty dirty = {
		.count = argc - 2,
		.dirty_sectors = (unsigned long)ranges,
	};

	if (dirty.count > MAX_RANGES)
		exit(200);
	for (__u32 i = 0; i < dirty.count; i++) {
		char *end;

		ranges[i].offset = strtoull(argv[i + 2], &end, 0);
		ranges[i].count = number(end + 1);
	}
	filter_ctl(BLKSNAP_FILTER_CBTDIRTY, &dirty, sizeof(dirty));
}

static void do_add(void)
{
	struct blksnap_snapshotadd add;

	read_id(argv[2], &add.id);
	filter_ctl(BLKSNAP_FILTER_SNAPSHOTADD, &add, sizeof(add));
}

static void do_info(void)
{
	struct blksnap_snapshotinfo info;

	filter_ctl(BLKSNAP_FILTER_SNAPSHOTINFO, &info, sizeof(info));
	printf("error %d\nimage %s\n", info.error_code, (char *)info.image);
}

static void do_create(void)
{
	struct blksnap_snapshot_create create = {
		.diff_storage_limit_sect = number(argv[2]),
		.diff_storage_filename = (unsigned long)argv[1],
	};

	control(IOCTL_BLKSNAP_SNAPSHOT_CREATE, &create);
	print_id(&create.id);
}

static void do_id(unsigned long request)
{
	struct blksnap_uuid id;

	read_id(argv[1], &id);
	control(request, &id);
}

static void do_take(void)
{
	do_id(IOCTL_BLKSNAP_SNAPSHOT_TAKE);
}

static void do_destroy(void)
{
	do_id(IOCTL_BLKSNAP_SNAPSHOT_DESTROY);
}

static void do_collect(void)
{
	static struct blksnap_uuid ids[MAX_IDS];
	struct {
		struct blksnap_snapshot_collect collect;
		__u8 behind[4];
	} arg = { .collect.count = argc > 1 ? number(argv[1]) : MAX_IDS };
	int fd = open_file(CONTROL), ret;

	memset(arg.behind, 0xa5, sizeof(arg.behind));
	if (arg.collect.count)
		arg.collect.ids = (unsigned long)ids;
	ret = ioctl(fd, IOCTL_BLKSNAP_SNAPSHOT_COLLECT, &arg.collect);
	check_behind(arg.behind, sizeof(arg.behind));
	if (ret < 0 || !arg.collect.ids)
		printf("%u\n", arg.collect.count);
	if (ret < 0)
		fail();
	for (__u32 i = 0; arg.collect.ids && i < arg.collect.count; i++)
		print_id(&ids[i]);
}

static void do_wait(void)
{
	static struct blksnap_snapshot_event event;

	read_id(argv[1], &event.id);
	event.timeout_ms = number(argv[2]);
	control(IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT, &event);
	printf("code %u\n", event.code);
	if (event.code == BLKSNAP_EVENT_CODE_NO_SPACE) {
		struct blksnap_event_no_space *data = (void *)event.data;

		printf("sectors %llu\n", (unsigned long long)data->requested_nr_sect);
	}
}

static const struct {
	const char *name;
	int min;
	void (*run)(void);
} commands[] = {
	{ "version", 0, do_version },
	{ "attach", 1, do_attach },
	{ "detach", 1, do_detach },
	{ "cbtinfo", 1, do_cbtinfo },
	{ "cbtmap", 3, do_cbtmap },
	{ "cbttakes", 1, do_cbttakes },
	{ "cbtdirty", 1, do_cbtdirty },
	{ "add", 2, do_add },
	{ "info", 1, do_info },
	{ "create", 2, do_create },
	{ "take", 1, do_take },
	{ "destroy", 1, do_destroy },
	{ "collect", 0, do_collect },
	{ "wait", 2, do_wait },
};

int main(int count, char **values)
{
	argc = count - 1;
	argv = values + 1;
	for (unsigned int i = 0; argc && i < sizeof(commands) / sizeof(*commands); i++) {
		if (strcmp(argv[0], commands[i].name) || argc - 1 < commands[i].min)
			continue;
		commands[i].run();
		return 0;
	}
	fprintf(stderr, "usage: blksnap_compat COMMAND ..., as with blksnap_ctl\n");
	return 200;
}
