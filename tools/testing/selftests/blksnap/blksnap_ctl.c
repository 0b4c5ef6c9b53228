// SPDX-License-Identifier: GPL-2.0-only
/*
 * Calls an ioctl of block device filters or of blksnap, for the tests here, and
 * prints plain text. Also does the I/O of the tests, with fewer processes than dd
 * and cmp need. usage() lists the commands.
 *
 * When something fails, the name of the error is the last line on stderr and its
 * number is the exit status; 200 is for a wrong call of this program.
 *
 * Whatever the kernel gets a pointer to ends where a page begins that cannot be
 * accessed, so it cannot read or write too much unnoticed.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <scsi/sg.h>

#include <linux/aio_abi.h>
#include <linux/blk-filter.h>
#include <linux/blksnap.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/fscrypt.h>
#include <linux/io_uring.h>
#include <linux/ioprio.h>
#include <linux/loop.h>
#include <linux/nvme_ioctl.h>

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define CONTROL		"/dev/" BLKSNAP_CTL
#define WRONG		200

/* How the ioctl is called. */
static bool no_cap;	/* without CAP_SYS_ADMIN */
static bool user_ns;	/* as root of a new user namespace */
static bool compat;	/* as a 32-bit program does */
static bool read_only;	/* with an argument that cannot be written to */
static bool may_fail;	/* with allocations that may fail, see fault injection */

static void __attribute__((noreturn, format(printf, 1, 2)))
die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(WRONG);
}

static const char *errno_name(int error)
{
	static const struct {
		int error;
		const char *name;
	} names[] = {
#define NAME(e) { e, #e }
		NAME(EPERM), NAME(ENOENT), NAME(ESRCH), NAME(EINTR), NAME(EIO),
		NAME(ENXIO), NAME(E2BIG), NAME(EBADF), NAME(EAGAIN),
		NAME(ENOMEM), NAME(EACCES), NAME(EFAULT), NAME(ENOTBLK),
		NAME(EBUSY), NAME(EEXIST), NAME(EXDEV), NAME(ENODEV),
		NAME(ENOTDIR), NAME(EISDIR), NAME(EINVAL), NAME(ENOTTY),
		NAME(ETXTBSY), NAME(EFBIG), NAME(ENOSPC), NAME(EROFS),
		NAME(ERANGE), NAME(EDEADLK), NAME(ENAMETOOLONG), NAME(ELOOP),
		NAME(ENODATA), NAME(EOVERFLOW), NAME(EOPNOTSUPP),
		NAME(ESHUTDOWN), NAME(ETIMEDOUT), NAME(EALREADY), NAME(ENOSYS),
		NAME(ESTALE),
#undef NAME
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (names[i].error == error)
			return names[i].name;
	return strerror(error);
}

static void __attribute__((noreturn)) fail(int error)
{
	fflush(stdout);
	fprintf(stderr, "%s\n", errno_name(error));
	exit(error);
}

/* Memory of @len bytes with a page behind it that cannot be accessed. */
static void *guarded(size_t len)
{
	size_t page = sysconf(_SC_PAGESIZE);
	size_t room = (len + page - 1) / page * page;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	char *memory;

#ifdef MAP_32BIT
	if (compat)
		flags |= MAP_32BIT;
#endif
	memory = mmap(NULL, room + page, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (memory == MAP_FAILED || mprotect(memory + room, page, PROT_NONE))
		die("no memory");
	return memory + room - len;
}

static void *bad_pointer(void)
{
	return guarded(0);
}

static void *guarded_copy(const void *from, size_t len)
{
	return len ? memcpy(guarded(len), from, len) : bad_pointer();
}

static __u64 ptr(const void *p)
{
	return (uintptr_t)p;
}

static unsigned long long number(const char *text)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 0);
	if (errno || !*text || *end)
		die("%s: not a number", text);
	return value;
}

static size_t hex_bytes(const char *text, __u8 *bytes, size_t room)
{
	size_t len = strlen(text) / 2;

	if (strlen(text) % 2 || len > room)
		die("%s: not bytes in hex", text);
	for (size_t i = 0; i < len; i++) {
		unsigned int byte;

		if (sscanf(text + 2 * i, "%2x", &byte) != 1)
			die("%s: not bytes in hex", text);
		bytes[i] = byte;
	}
	return len;
}

/* "null", "bad", "zero:LENGTH" or bytes in hex. */
static void *pointer(const char *text, size_t *len)
{
	__u8 bytes[4096];

	*len = 0;
	if (!strcmp(text, "null"))
		return NULL;
	if (!strcmp(text, "bad"))
		return bad_pointer();
	if (!strncmp(text, "zero:", 5)) {
		*len = number(text + 5);
		return *len ? guarded(*len) : bad_pointer();
	}
	*len = hex_bytes(text, bytes, sizeof(bytes));
	return guarded_copy(bytes, *len);
}

static struct blksnap_uuid to_id(const char *text)
{
	struct blksnap_uuid id = {};
	char hex[2 * sizeof(id.b) + 1] = "";
	size_t n = 0;

	for (; *text; text++) {
		if (*text == '-')
			continue;
		if (n == sizeof(hex) - 1)
			die("an id is too long");
		hex[n++] = *text;
	}
	if (hex_bytes(hex, id.b, sizeof(id.b)) != sizeof(id.b))
		die("an id is too short");
	return id;
}

static void print_id(const struct blksnap_uuid *id)
{
	for (size_t i = 0; i < sizeof(id->b); i++)
		printf("%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
		       id->b[i]);
}

/* A device, or "fd:NUMBER" for one that the caller has open. */
static int open_device(const char *path)
{
	int fd;

	if (!strncmp(path, "fd:", 3))
		return number(path + 3);
	/* As existing clients do. */
	fd = open(path, O_RDONLY | O_DIRECT);
	if (fd < 0 && errno == EINVAL)
		fd = open(path, O_RDONLY);
	if (fd < 0) {
		fprintf(stderr, "%s: cannot be opened\n", path);
		fail(errno);
	}
	return fd;
}

static int open_control(void)
{
	return open_device(CONTROL);
}

static void drop_rights(void)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct data[2];

	if (user_ns && unshare(CLONE_NEWUSER))
		die("no user namespaces");
	if (!no_cap)
		return;
	if (syscall(SYS_capget, &header, data))
		die("capget");
	data[0].effective &= ~(1U << CAP_SYS_ADMIN);
	if (syscall(SYS_capset, &header, data))
		die("capset");
}

static int failing_call(int fd, unsigned int request, void *arg)
{
	/* Opening it again would fail, too. */
	int faults = open("/proc/self/make-it-fail", O_WRONLY);
	int error;

	if (faults < 0 || pwrite(faults, "1", 1, 0) != 1)
		die("no fault injection");
	error = ioctl(fd, request, arg) < 0 ? errno : 0;
	if (pwrite(faults, "0", 1, 0) != 1)
		die("no fault injection");
	close(faults);
	return error;
}

static int call(int fd, unsigned int request, void *arg)
{
	drop_rights();
	if (read_only && mprotect((void *)(ptr(arg) & -sysconf(_SC_PAGESIZE)),
				  sysconf(_SC_PAGESIZE), PROT_READ))
		die("mprotect");
	if (may_fail)
		return failing_call(fd, request, arg);
	if (!compat)
		return ioctl(fd, request, arg) < 0 ? errno : 0;
#ifdef __x86_64__
	long ret;

	asm volatile("int $0x80"
		     : "=a" (ret)
		     : "0" (54L), "b" ((long)fd), "c" ((long)request), "d" (arg)
		     : "memory", "r8", "r9", "r10", "r11");
	return (int)ret < 0 ? -(int)ret : 0;
#else
	die("no 32-bit programs here");
#endif
}

static void must(int error)
{
	if (error)
		fail(error);
}

static void set_name(__u8 *field, const char *name)
{
	/* One of BLKFILTER_NAME_LENGTH bytes is without an end. */
	memcpy(field, name, strnlen(name, BLKFILTER_NAME_LENGTH));
}

static int filter_ctl(int fd, const char *name, __u32 cmd, __u32 optlen, void *opt)
{
	struct blkfilter_ctl *ctl = guarded(sizeof(*ctl));

	set_name(ctl->name, name);
	ctl->cmd = cmd;
	ctl->optlen = optlen;
	ctl->opt = ptr(opt);
	return call(fd, BLKFILTER_CTL, ctl);
}

static void blksnap_ctl(const char *path, __u32 cmd, __u32 optlen, void *opt)
{
	must(filter_ctl(open_device(path), BLKSNAP_FILTER_NAME, cmd, optlen, opt));
}

/* The command line, from the command on. */
static int argc;
static char **argv;

static const char *arg(int i, const char *otherwise)
{
	return i < argc ? argv[i] : otherwise;
}

static void do_abi(void)
{
#define VALUE(v)	printf("%s 0x%08x\n", #v, (unsigned int)(v))
#define SIZE(t)		printf("struct %s %zu\n", #t, sizeof(struct t))
#define FIELD(t, f)	printf("%s.%s %zu\n", #t, #f, offsetof(struct t, f))
	VALUE(BLKFILTER_ATTACH);
	VALUE(BLKFILTER_DETACH);
	VALUE(BLKFILTER_CTL);
	VALUE(IOCTL_BLKSNAP_VERSION);
	VALUE(IOCTL_BLKSNAP_SNAPSHOT_CREATE);
	VALUE(IOCTL_BLKSNAP_SNAPSHOT_DESTROY);
	VALUE(IOCTL_BLKSNAP_SNAPSHOT_TAKE);
	VALUE(IOCTL_BLKSNAP_SNAPSHOT_COLLECT);
	VALUE(IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT);
	VALUE(IOCTL_BLKSNAP_SNAPSHOT_CREATE_EMPTY);
	VALUE(IOCTL_BLKSNAP_STORAGE_APPEND);
	VALUE(IOCTL_BLKSNAP_STORAGE_LIMIT);
	VALUE(IOCTL_BLKSNAP_STORAGE_LOW_SPACE);
	VALUE(IOCTL_BLKSNAP_STORAGE_INFO);
	VALUE(IOCTL_BLKSNAP_SNAPSHOT_WATCH);
	VALUE(IOCTL_BLKSNAP_SNAPSHOT_OWN);
	VALUE(IOCTL_BLKSNAP_SNAPSHOT_FREEZE);
	VALUE(BLKSNAP_FILTER_CBTINFO);
	VALUE(BLKSNAP_FILTER_CBTMAP);
	VALUE(BLKSNAP_FILTER_CBTDIRTY);
	VALUE(BLKSNAP_FILTER_SNAPSHOTADD);
	VALUE(BLKSNAP_FILTER_SNAPSHOTINFO);
	VALUE(BLKSNAP_FILTER_CBTTAKES);
	VALUE(BLKSNAP_FILTER_SELECT);
	VALUE(BLKSNAP_EVENT_CODE_CORRUPTED);
	VALUE(BLKSNAP_EVENT_CODE_NO_SPACE);
	VALUE(BLKSNAP_EVENT_CODE_LOW_SPACE);
	SIZE(blkfilter_attach);
	FIELD(blkfilter_attach, opt);
	FIELD(blkfilter_attach, optlen);
	SIZE(blkfilter_detach);
	SIZE(blkfilter_ctl);
	FIELD(blkfilter_ctl, cmd);
	FIELD(blkfilter_ctl, optlen);
	FIELD(blkfilter_ctl, opt);
	SIZE(blksnap_cbtinfo);
	FIELD(blksnap_cbtinfo, block_size);
	FIELD(blksnap_cbtinfo, block_count);
	FIELD(blksnap_cbtinfo, generation_id);
	FIELD(blksnap_cbtinfo, changes_number);
	SIZE(blksnap_cbtmap);
	FIELD(blksnap_cbtmap, length);
	FIELD(blksnap_cbtmap, buffer);
	SIZE(blksnap_cbttakes);
	FIELD(blksnap_cbttakes, size);
	FIELD(blksnap_cbttakes, takes);
	FIELD(blksnap_cbttakes, generation_id);
	FIELD(blksnap_cbttakes, flags);
	SIZE(blksnap_select);
	FIELD(blksnap_select, flags);
	SIZE(blksnap_sectors);
	SIZE(blksnap_cbtdirty);
	FIELD(blksnap_cbtdirty, dirty_sectors);
	SIZE(blksnap_snapshotadd);
	SIZE(blksnap_snapshotinfo);
	FIELD(blksnap_snapshotinfo, image);
	SIZE(blksnap_version);
	SIZE(blksnap_snapshot_create);
	FIELD(blksnap_snapshot_create, diff_storage_filename);
	FIELD(blksnap_snapshot_create, id);
	SIZE(blksnap_snapshot_collect);
	FIELD(blksnap_snapshot_collect, ids);
	SIZE(blksnap_snapshot_event);
	FIELD(blksnap_snapshot_event, timeout_ms);
	FIELD(blksnap_snapshot_event, code);
	FIELD(blksnap_snapshot_event, time_label);
	FIELD(blksnap_snapshot_event, data);
	SIZE(blksnap_snapshot_create_empty);
	FIELD(blksnap_snapshot_create_empty, flags);
	SIZE(blksnap_storage_append);
	FIELD(blksnap_storage_append, ranges);
	FIELD(blksnap_storage_append, count);
	FIELD(blksnap_storage_append, fd);
	FIELD(blksnap_storage_append, flags);
	SIZE(blksnap_storage_limit);
	FIELD(blksnap_storage_limit, limit_sect);
	SIZE(blksnap_storage_low_space);
	FIELD(blksnap_storage_low_space, nr_sect);
	SIZE(blksnap_event_lost);
	FIELD(blksnap_event_lost, sector);
	FIELD(blksnap_event_lost, nr_sect);
	FIELD(blksnap_event_lost, err_code);
	SIZE(blksnap_event_slow_storage);
	FIELD(blksnap_event_slow_storage, held_ms);
	FIELD(blksnap_event_slow_storage, limit_ms);
	SIZE(blksnap_snapshot_freeze);
	FIELD(blksnap_snapshot_freeze, fd);
	FIELD(blksnap_snapshot_freeze, flags);
	SIZE(blksnap_storage_info);
	FIELD(blksnap_storage_info, total_nr_sect);
	FIELD(blksnap_storage_info, used_nr_sect);
	FIELD(blksnap_storage_info, low_space_nr_sect);
	FIELD(blksnap_storage_info, lost_nr_sect);
	FIELD(blksnap_storage_info, held_ms);
	FIELD(blksnap_storage_info, reserved);
}

static void do_attach(void)
{
	struct blkfilter_attach *attach = guarded(sizeof(*attach));
	size_t len;

	set_name(attach->name, arg(2, BLKSNAP_FILTER_NAME));
	attach->opt = ptr(pointer(arg(4, "null"), &len));
	attach->optlen = number(arg(3, "0"));
	must(call(open_device(argv[1]), BLKFILTER_ATTACH, attach));
}

static void do_detach(void)
{
	struct blkfilter_detach *detach = guarded(sizeof(*detach));

	set_name(detach->name, arg(2, BLKSNAP_FILTER_NAME));
	must(call(open_device(argv[1]), BLKFILTER_DETACH, detach));
}

static void do_ctl(void)
{
	size_t len;
	__u64 *opt = pointer(argv[5], &len);

	must(filter_ctl(open_device(argv[1]), argv[2], number(argv[3]),
			number(argv[4]), opt));
	for (size_t i = 0; i < len / sizeof(*opt); i++)
		printf("%llu\n", (unsigned long long)opt[i]);
}

static void do_create(void)
{
	struct blksnap_snapshot_create *create = guarded(sizeof(*create));
	const char *path = argv[1];
	void *p;

	if (!strcmp(path, "bad"))
		p = bad_pointer();
	else
		p = guarded_copy(path, strlen(path) + 1);
	create->diff_storage_limit_sect = number(argv[2]);
	create->diff_storage_filename = ptr(p);
	must(call(open_control(), IOCTL_BLKSNAP_SNAPSHOT_CREATE, create));
	print_id(&create->id);
	putchar('\n');
}

static void do_create_empty(void)
{
	struct blksnap_snapshot_create_empty *create = guarded(sizeof(*create));

	create->flags = number(arg(1, "0"));
	must(call(open_control(), IOCTL_BLKSNAP_SNAPSHOT_CREATE_EMPTY, create));
	print_id(&create->id);
	putchar('\n');
}

/* What is on the command line as OFFSET:COUNT from argument @first on. */
static struct blksnap_sectors *to_sectors(int first)
{
	struct blksnap_sectors *ranges = guarded((argc - first) * sizeof(*ranges));

	for (int i = first; i < argc; i++) {
		char *count = strchr(argv[i], ':');

		if (!count)
			die("%s: not OFFSET:COUNT", argv[i]);
		*count++ = 0;
		ranges[i - first].offset = number(argv[i]);
		ranges[i - first].count = number(count);
	}
	return ranges;
}

/* A device that is opened with @flags, or "fd:" and a descriptor */
static int to_fd(const char *file, int flags)
{
	int fd;

	if (!strncmp(file, "fd:", 3))
		return number(file + 3);
	fd = open(file, flags);
	if (fd < 0)
		fail(errno);
	return fd;
}

static void do_append(void)
{
	struct blksnap_storage_append append = { .id = to_id(argv[1]) };

	append.fd = to_fd(argv[2], O_RDWR);
	append.count = argc - 3;
	if (!strcmp(arg(3, ""), "bad")) {
		append.count = 1;
		append.ranges = ptr(bad_pointer());
	} else if (append.count) {
		append.ranges = ptr(to_sectors(3));
	}
	must(call(open_control(), IOCTL_BLKSNAP_STORAGE_APPEND,
		  guarded_copy(&append, sizeof(append))));
}

static void do_freeze(void)
{
	struct blksnap_snapshot_freeze freeze = { .id = to_id(argv[1]) };

	freeze.fd = to_fd(argv[2], O_RDONLY);
	freeze.flags = number(arg(3, "0"));
	must(call(open_control(), IOCTL_BLKSNAP_SNAPSHOT_FREEZE,
		  guarded_copy(&freeze, sizeof(freeze))));
}

static void do_limit(void)
{
	struct blksnap_storage_limit limit = {
		.id = to_id(argv[1]), .limit_sect = number(argv[2]),
	};

	must(call(open_control(), IOCTL_BLKSNAP_STORAGE_LIMIT,
		  guarded_copy(&limit, sizeof(limit))));
}

static void do_low_space(void)
{
	struct blksnap_storage_low_space low = {
		.id = to_id(argv[1]), .nr_sect = number(argv[2]),
	};

	must(call(open_control(), IOCTL_BLKSNAP_STORAGE_LOW_SPACE,
		  guarded_copy(&low, sizeof(low))));
}

static void do_space(void)
{
	struct blksnap_storage_info *info = guarded(sizeof(*info));

	memset(info, 0xa5, sizeof(*info));
	info->id = to_id(argv[1]);
	must(call(open_control(), IOCTL_BLKSNAP_STORAGE_INFO, info));
	printf("total %llu\nused %llu\nlow %llu\nlost %llu\nheld %llu\n",
	       (unsigned long long)info->total_nr_sect,
	       (unsigned long long)info->used_nr_sect,
	       (unsigned long long)info->low_space_nr_sect,
	       (unsigned long long)info->lost_nr_sect, (unsigned long long)info->held_ms);
	if (info->reserved)
		die("what is reserved is not 0");
}

static void do_id(unsigned int request)
{
	struct blksnap_uuid id = to_id(argv[1]);

	must(call(open_control(), request, guarded_copy(&id, sizeof(id))));
}

static void do_destroy(void)
{
	do_id(IOCTL_BLKSNAP_SNAPSHOT_DESTROY);
}

static void do_take(void)
{
	do_id(IOCTL_BLKSNAP_SNAPSHOT_TAKE);
}

static void do_add(void)
{
	struct blksnap_snapshotadd add = { .id = to_id(argv[2]) };

	blksnap_ctl(argv[1], BLKSNAP_FILTER_SNAPSHOTADD, sizeof(add),
		    guarded_copy(&add, sizeof(add)));
}

static void do_info(void)
{
	struct blksnap_snapshotinfo *info = guarded(sizeof(*info));

	memset(info, 0xa5, sizeof(*info));
	blksnap_ctl(argv[1], BLKSNAP_FILTER_SNAPSHOTINFO, sizeof(*info), info);
	if (info->image[sizeof(info->image) - 1])
		die("the image's name has no end");
	printf("error %d\nimage %s\n", info->error_code, info->image);
}

static void do_collect(void)
{
	struct blksnap_snapshot_collect *collect = guarded(sizeof(*collect));
	const char *room = arg(1, "all");
	struct blksnap_uuid *ids, untouched;
	int fd = open_control(), error;

	memset(&untouched, 0xa5, sizeof(untouched));
	if (!strcmp(room, "null") || !strcmp(room, "bad")) {
		collect->count = 1000;
		if (*room == 'b')
			collect->ids = ptr(bad_pointer());
		error = call(fd, IOCTL_BLKSNAP_SNAPSHOT_COLLECT, collect);
		printf("%u\n", collect->count);
		must(error);
		return;
	}
	collect->count = strcmp(room, "all") ? number(room) : 1000;
	ids = collect->count ? guarded(collect->count * sizeof(*ids)) : bad_pointer();
	for (__u32 i = 0; i < collect->count; i++)
		ids[i] = untouched;
	collect->ids = ptr(ids);

	__u32 had = collect->count;

	error = call(fd, IOCTL_BLKSNAP_SNAPSHOT_COLLECT, collect);
	if (error)
		printf("%u\n", collect->count);
	must(error);
	for (__u32 i = 0; i < had; i++) {
		if (i < collect->count) {
			print_id(&ids[i]);
			putchar('\n');
		} else if (memcmp(&ids[i], &untouched, sizeof(untouched))) {
			die("more was written than is counted");
		}
	}
}

static void do_version(void)
{
	struct blksnap_version *v = guarded(sizeof(*v));

	memset(v, 0xa5, sizeof(*v));
	must(call(open_control(), IOCTL_BLKSNAP_VERSION, v));
	printf("%u.%u.%u.%u\n", v->major, v->minor, v->revision, v->build);
}

static void do_cbtinfo(void)
{
	struct blksnap_cbtinfo *info = guarded(sizeof(*info));

	memset(info, 0xa5, sizeof(*info));
	blksnap_ctl(argv[1], BLKSNAP_FILTER_CBTINFO, sizeof(*info), info);
	printf("capacity %llu\nblock_size %u\nblock_count %u\nnumber %u\ngeneration ",
	       (unsigned long long)info->device_capacity, info->block_size,
	       info->block_count, info->changes_number);
	print_id(&info->generation_id);
	putchar('\n');
}

static void do_cbtmap(void)
{
	struct blksnap_cbtmap *map = guarded(sizeof(*map));
	bool bad = !strcmp(arg(4, ""), "bad");
	__u8 *buffer = NULL;

	map->offset = number(argv[2]);
	map->length = number(argv[3]);
	/* What is longer is refused before it is looked at. */
	if (map->length > 1 << 24)
		bad = true;
	buffer = bad || !map->length ? bad_pointer() : guarded(map->length);
	map->buffer = ptr(buffer);
	blksnap_ctl(argv[1], BLKSNAP_FILTER_CBTMAP, sizeof(*map), map);
	for (__u32 i = 0; !bad && i < map->length; i++)
		printf("%u\n", buffer[i]);
}

/* Prints the blocks that are not 0, as BLOCK:NUMBER, from a map that is read at once. */
static void do_marks(void)
{
	const char *space = "";
	struct blksnap_cbtinfo info = { 0 };
	struct blksnap_cbtmap *map = guarded(sizeof(*map));
	__u8 *buffer;

	blksnap_ctl(argv[1], BLKSNAP_FILTER_CBTINFO, sizeof(info), &info);
	map->length = info.block_count;
	buffer = guarded(map->length);
	map->buffer = ptr(buffer);
	blksnap_ctl(argv[1], BLKSNAP_FILTER_CBTMAP, sizeof(*map), map);
	for (__u32 i = 0; i < map->length; i++) {
		if (buffer[i]) {
			printf("%s%u:%u", space, i, buffer[i]);
			space = " ";
		}
	}
}

static void do_select(void)
{
	struct blksnap_select select = {
		.take_id = to_id(argv[2]),
		.flags = number(arg(3, "0")),
	};
	size_t len = number(arg(4, "24"));
	__u8 *bytes = guarded(len);

	memcpy(bytes, &select, len < sizeof(select) ? len : sizeof(select));
	if (argc > 5)
		bytes[len - 1] = number(argv[5]);
	blksnap_ctl(argv[1], BLKSNAP_FILTER_SELECT, len, bytes);
}

/* Prints the generation, then the ids, one a line; of an error, the number needed. */
static void do_cbttakes(void)
{
	struct blksnap_cbttakes *takes = guarded(sizeof(*takes));
	const char *room = arg(2, "254");
	__u8 *ids = NULL;
	int error;

	takes->size = number(arg(3, "16"));
	if (!strcmp(room, "bad")) {
		takes->count = 254;
		ids = bad_pointer();
	} else if (strcmp(room, "null")) {
		takes->count = number(room);
		ids = takes->count ? guarded(takes->count * takes->size) :
				     bad_pointer();
	}
	if (ids && takes->count && strcmp(room, "bad"))
		memset(ids, 0xa5, takes->count * takes->size);
	takes->takes = ptr(ids);

	__u32 had = takes->count;

	error = filter_ctl(open_device(argv[1]), BLKSNAP_FILTER_NAME,
			   BLKSNAP_FILTER_CBTTAKES, sizeof(*takes), takes);
	if (error == ENODATA || (!error && !ids))
		printf("%u\n", takes->count);
	must(error);
	if (takes->size != number(arg(3, "16")) || takes->takes != ptr(ids) || takes->flags)
		die("more was written than returned");
	print_id(&takes->generation_id);
	putchar('\n');
	for (__u32 i = 0; ids && i < had; i++) {
		const __u8 *id = ids + i * takes->size;
		bool filled = i < takes->count;

		for (__u32 j = filled ? sizeof(struct blksnap_uuid) : 0; j < takes->size; j++)
			if (id[j] != (filled ? 0 : 0xa5))
				die("element %u, byte %u: %02x", i, j, id[j]);
		if (filled) {
			print_id((const struct blksnap_uuid *)id);
			putchar('\n');
		}
	}
}

static void do_cbtdirty(void)
{
	struct blksnap_cbtdirty *dirty = guarded(sizeof(*dirty));
	void *ranges;

	if (!strcmp(arg(2, ""), "bad")) {
		dirty->count = number(arg(3, "1"));
		ranges = bad_pointer();
	} else {
		dirty->count = argc - 2;
		ranges = dirty->count ? to_sectors(2) : bad_pointer();
	}
	dirty->dirty_sectors = ptr(ranges);
	blksnap_ctl(argv[1], BLKSNAP_FILTER_CBTDIRTY, sizeof(*dirty), dirty);
}

static void on_signal(int signal)
{
	(void)signal;
}

static void do_wait(void)
{
	struct blksnap_snapshot_event *event = guarded(sizeof(*event));
	const struct sigaction action = { .sa_handler = on_signal };
	size_t used = 0;

	/* Without SA_RESTART. */
	sigaction(SIGTERM, &action, NULL);
	memset(event, 0xa5, sizeof(*event));
	event->id = to_id(argv[1]);
	event->timeout_ms = number(argv[2]);
	must(call(open_control(), IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT, event));

	printf("code %u\ntime %lld\n", event->code, (long long)event->time_label);
	if (event->code == BLKSNAP_EVENT_CODE_CORRUPTED) {
		struct blksnap_event_corrupted *data = (void *)event->data;

		printf("device %u:%u\nerror %d\n", data->dev_id_mj,
		       data->dev_id_mn, data->err_code);
		used = sizeof(*data);
	} else if (event->code == BLKSNAP_EVENT_CODE_NO_SPACE) {
		struct blksnap_event_no_space *data = (void *)event->data;

		printf("sectors %llu\n", (unsigned long long)data->requested_nr_sect);
		used = sizeof(*data);
	} else if (event->code == BLKSNAP_EVENT_CODE_LOW_SPACE) {
		struct blksnap_event_low_space *data = (void *)event->data;

		printf("sectors %llu\n", (unsigned long long)data->left_nr_sect);
		used = sizeof(*data);
	} else if (event->code == BLKSNAP_EVENT_CODE_LOST) {
		struct blksnap_event_lost *data = (void *)event->data;

		printf("device %u:%u\nsector %llu\nsectors %llu\nerror %d\n",
		       data->dev_id_mj, data->dev_id_mn,
		       (unsigned long long)data->sector,
		       (unsigned long long)data->nr_sect, data->err_code);
		used = sizeof(*data);
	} else if (event->code == BLKSNAP_EVENT_CODE_SLOW_STORAGE) {
		struct blksnap_event_slow_storage *data = (void *)event->data;

		printf("device %u:%u\nheld %u\nlimit %u\n", data->dev_id_mj,
		       data->dev_id_mn, data->held_ms, data->limit_ms);
		used = sizeof(*data);
	}
	for (size_t i = used; i < sizeof(event->data); i++)
		if (event->data[i])
			die("there is something behind the event's data");
}

/* Prints what poll() says of the control device, "watching" or not. */
static void do_poll(void)
{
	struct pollfd poll_fd = { .fd = open_control(), .events = POLLIN };

	if (argc > 2) {
		struct blksnap_uuid id = to_id(argv[2]);

		must(call(poll_fd.fd, IOCTL_BLKSNAP_SNAPSHOT_WATCH,
			  guarded_copy(&id, sizeof(id))));
		if (call(poll_fd.fd, IOCTL_BLKSNAP_SNAPSHOT_WATCH,
			 guarded_copy(&id, sizeof(id))) != EBUSY)
			die("it watches two");
		puts("watching");
		fflush(stdout);
	}
	if (poll(&poll_fd, 1, number(argv[1])) < 0)
		fail(errno);
	printf("%s%s%s%s\n", poll_fd.revents ? "" : "nothing",
	       poll_fd.revents & POLLIN ? "in" : "", poll_fd.revents & POLLHUP ? "hup" : "",
	       poll_fd.revents & POLLERR ? "err" : "");
}

/*
 * Creates snapshots that end when this process and one that it forks have ended, and
 * takes the first one, of the device. Prints the forked process and the ids, and waits.
 */
static void do_own(void)
{
	struct blksnap_snapshot_create create = {
		.diff_storage_limit_sect = number(argv[3]),
		.diff_storage_filename = ptr(argv[2]),
	};
	unsigned long long count = number(argv[1]);
	int dev = open_device(argv[4]), control = open_control();
	pid_t child;

	/* The second time it changes nothing. */
	must(call(control, IOCTL_BLKSNAP_SNAPSHOT_OWN, NULL));
	must(call(control, IOCTL_BLKSNAP_SNAPSHOT_OWN, NULL));
	child = fork();
	if (child < 0)
		fail(errno);
	if (!child)
		for (;;)
			pause();
	printf("%d", child);
	for (unsigned long long i = 0; i < count; i++) {
		must(call(control, IOCTL_BLKSNAP_SNAPSHOT_CREATE, &create));
		if (!i) {
			must(filter_ctl(dev, BLKSNAP_FILTER_NAME, BLKSNAP_FILTER_SNAPSHOTADD,
					sizeof(create.id), &create.id));
			must(call(control, IOCTL_BLKSNAP_SNAPSHOT_TAKE, &create.id));
		}
		putchar(' ');
		print_id(&create.id);
	}
	putchar('\n');
	fflush(stdout);
	for (;;)
		pause();
}

static void do_raw(void)
{
	size_t len;
	int fd = open_device(argv[1]);
	__u8 *p = pointer(argv[3], &len);

	must(call(fd, number(argv[2]), p));
	for (size_t i = 0; i < len; i++)
		printf("%02x", p[i]);
	putchar('\n');
}

/* A SCSI command past the block layer's bios */
static void do_scsi(void)
{
	bool out = !strcmp(argv[2], "out");
	__u8 cdb[16], sense[32];
	size_t len;
	void *data = pointer(argv[4], &len);
	struct sg_io_hdr hdr = {
		.interface_id = 'S',
		.dxfer_direction = out ? SG_DXFER_TO_DEV : SG_DXFER_FROM_DEV,
		.cmd_len = hex_bytes(argv[3], cdb, sizeof(cdb)),
		.cmdp = cdb,
		.mx_sb_len = sizeof(sense),
		.sbp = sense,
		.dxfer_len = len,
		.dxferp = data,
		.timeout = 30000,
	};

	if (ioctl(open_device(argv[1]), SG_IO, &hdr))
		fail(errno);
	if ((hdr.info & SG_INFO_OK_MASK) != SG_INFO_OK)
		fail(EIO);
}

/* The same of NVMe, for the first namespace */
static void do_nvme(void)
{
	size_t len;
	void *data = pointer(argv[4], &len);
	struct nvme_passthru_cmd cmd = {
		.opcode = number(argv[2]),
		.nsid = 1,
		.addr = ptr(data),
		.data_len = len,
		.cdw10 = number(argv[3]),
		.cdw12 = len / 512 - 1,
	};

	int ret = ioctl(open_device(argv[1]), NVME_IOCTL_IO_CMD, &cmd);

	if (ret)
		fail(ret < 0 ? errno : EIO);
}

/* Rounds of create, add, take and destroy, for a device with a filter. */
static void do_cycle(void)
{
	struct blksnap_snapshot_create create = {
		.diff_storage_limit_sect = number(argv[3]),
		.diff_storage_filename = ptr(argv[2]),
	};
	int dev = open_device(argv[1]), control = open_control();

	for (unsigned long long n = number(argv[4]); n; n--) {
		must(call(control, IOCTL_BLKSNAP_SNAPSHOT_CREATE, &create));
		must(filter_ctl(dev, BLKSNAP_FILTER_NAME, BLKSNAP_FILTER_SNAPSHOTADD,
				sizeof(create.id), &create.id));
		must(call(control, IOCTL_BLKSNAP_SNAPSHOT_TAKE, &create.id));
		must(call(control, IOCTL_BLKSNAP_SNAPSHOT_DESTROY, &create.id));
	}
}

/*
 * Writes 1, 2, 3 and so on to the first sectors of the devices, to each of them
 * in turn, until it is killed. So the number on one of them is never higher than
 * on those before it, nor lower by more than one.
 */
static void do_count(void)
{
	static __u64 block[512] __attribute__((aligned(4096)));
	int fds[16];

	if (argc > 1 + (int)ARRAY_SIZE(fds))
		die("too many devices");
	for (int i = 1; i < argc; i++) {
		fds[i - 1] = open(argv[i], O_WRONLY | O_DIRECT);
		if (fds[i - 1] < 0)
			fail(errno);
	}
	for (;;) {
		block[0]++;
		for (int i = 0; i < argc - 1; i++)
			if (pwrite(fds[i], block, sizeof(block), 0) != sizeof(block))
				fail(errno);
	}
}

/* Writes without waiting; says how often that was refused. */
static void do_nowait(void)
{
	static char block[4096] __attribute__((aligned(4096)));
	int fd = open(argv[1], O_WRONLY | O_DIRECT);
	off_t end = number(argv[3]);
	struct iovec iov = { .iov_base = block, .iov_len = sizeof(block) };
	unsigned int done = 0, refused = 0;

	if (fd < 0)
		fail(errno);
	memset(block, 'n', sizeof(block));
	for (off_t at = number(argv[2]); at < end; at += sizeof(block)) {
		ssize_t ret = pwritev2(fd, &iov, 1, at, RWF_NOWAIT);

		if (ret == sizeof(block))
			done++;
		else if (ret < 0 && errno == EAGAIN)
			refused++;
		else
			fail(ret < 0 ? errno : EIO);
	}
	printf("done %u\nrefused %u\n", done, refused);
}

static __u64 next_random(void)
{
	static __u64 state;

	while (!state)
		if (getrandom(&state, sizeof(state), 0) != sizeof(state))
			die("getrandom");
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void write_all(int fd, const __u8 *bytes, size_t len, off_t at)
{
	while (len) {
		ssize_t done = pwrite(fd, bytes, len, at);

		if (done <= 0)
			fail(done ? errno : EIO);
		bytes += done;
		len -= done;
		at += done;
	}
}

static void *io_buffer(size_t len)
{
	void *buffer;

	if (posix_memalign(&buffer, 4096, len))
		die("no memory");
	return buffer;
}

/* Fills @len bytes, or what there is. */
static size_t read_all(int fd, __u8 *bytes, size_t len, off_t at)
{
	size_t sum = 0;

	while (sum < len) {
		ssize_t done = pread(fd, bytes + sum, len - sum, at + sum);

		if (done < 0)
			fail(errno);
		if (!done)
			break;
		sum += done;
	}
	return sum;
}

static ssize_t write_nowait(int fd, const void *bytes, size_t len, off_t at)
{
	struct iovec iov = { .iov_base = (void *)bytes, .iov_len = len };

	return pwritev2(fd, &iov, 1, at, RWF_NOWAIT);
}

/* Nothing is there to wait for but pages that somebody has just read. */
static ssize_t write_sure(int fd, const void *bytes, size_t len, off_t at)
{
	ssize_t done = write_nowait(fd, bytes, len, at);

	for (int i = 0; i < 100 && done < 0 && errno == EAGAIN; i++) {
		usleep(10000);
		ioctl(fd, BLKFLSBUF);
		done = write_nowait(fd, bytes, len, at);
	}
	return done;
}

/* What is refused has not happened. */
static ssize_t write_try(int fd, const void *bytes, size_t len, off_t at)
{
	__u8 *before = io_buffer(len), *after = io_buffer(len);
	ssize_t done;

	read_all(fd, before, len, at);
	done = write_nowait(fd, bytes, len, at);
	if (done < 0 && errno == EAGAIN) {
		read_all(fd, after, len, at);
		if (memcmp(before, after, len))
			die("a write was refused, and done");
		done = 0;
	}
	free(before);
	free(after);
	return done;
}

/* A ring, which goes with the process. */
struct uring {
	int fd;
	__u32 *sq_tail, *cq_tail;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
};

static bool new_uring(struct uring *ring, __u32 entries)
{
	const int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
	struct io_uring_params params = {};
	__u32 *array;
	char *rings;

	ring->fd = syscall(__NR_io_uring_setup, entries, &params);
	if (ring->fd < 0)
		return false;
	/* Both rings are in one mapping, with the array at its end. */
	rings = mmap(NULL, params.sq_off.array + entries * sizeof(*array), prot, flags,
		     ring->fd, IORING_OFF_SQ_RING);
	ring->sqes = mmap(NULL, entries * sizeof(*ring->sqes), prot, flags, ring->fd,
			  IORING_OFF_SQES);
	if (rings == MAP_FAILED || ring->sqes == MAP_FAILED)
		die("no rings");
	ring->sq_tail = (void *)(rings + params.sq_off.tail);
	ring->cq_tail = (void *)(rings + params.cq_off.tail);
	ring->cqes = (void *)(rings + params.cq_off.cqes);
	array = (void *)(rings + params.sq_off.array);
	for (__u32 i = 0; i < entries; i++)
		array[i] = i;
	return true;
}

static int enter_uring(struct uring *ring, __u32 submit, __u32 wait)
{
	__atomic_store_n(ring->sq_tail, *ring->sq_tail + submit, __ATOMIC_RELEASE);
	return syscall(__NR_io_uring_enter, ring->fd, submit, wait,
		       wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
}

/* How many have been completed. */
static __u32 completed(struct uring *ring)
{
	return __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);
}

static ssize_t write_uring(int fd, const void *bytes, size_t len, off_t at)
{
	struct uring ring;

	if (!new_uring(&ring, 1))
		return -1;
	ring.sqes[0] = (struct io_uring_sqe) {
		.opcode = IORING_OP_WRITE,
		.fd = fd,
		.addr = ptr(bytes),
		.len = len,
		.off = at,
	};
	if (enter_uring(&ring, 1, 1) != 1)
		return -1;
	if (completed(&ring) != 1)
		die("nothing was completed");
	if (ring.cqes[0].res < 0) {
		errno = -ring.cqes[0].res;
		return -1;
	}
	return ring.cqes[0].res;
}

static unsigned int threads(void)
{
	DIR *dir = opendir("/proc/self/task");
	unsigned int count = 0;
	struct dirent *entry;

	if (!dir)
		fail(errno);
	while ((entry = readdir(dir)))
		count += entry->d_name[0] != '.';
	closedir(dir);
	return count;
}

/*
 * One thread submits COUNT writes of 4 KiB at once by io_uring. Prints how many had
 * not ended then, how often it was put to sleep for that, and how many threads were
 * made to sleep in its place.
 */
static void do_submit(void)
{
	__u32 count = number(argv[2]);
	__u64 stride = number(argv[3]);
	int fd = open(argv[1], O_WRONLY | O_DIRECT);
	const size_t len = 4096;
	void *block = io_buffer(len);
	struct rusage before, after;
	unsigned int pending, helpers;
	struct uring ring;

	if (fd < 0 || !new_uring(&ring, count))
		fail(errno);
	memset(block, 's', len);
	for (__u32 i = 0; i < count; i++)
		ring.sqes[i] = (struct io_uring_sqe) {
			.opcode = IORING_OP_WRITE,
			.fd = fd,
			.addr = ptr(block),
			.len = len,
			.off = i * stride,
		};
	if (getrusage(RUSAGE_THREAD, &before))
		fail(errno);
	if (enter_uring(&ring, count, 0) != (int)count)
		fail(errno);
	if (getrusage(RUSAGE_THREAD, &after))
		fail(errno);
	pending = count - completed(&ring);
	helpers = threads() - 1;
	while (completed(&ring) < count)
		if (enter_uring(&ring, 0, count) < 0)
			fail(errno);
	for (__u32 i = 0; i < count; i++)
		if (ring.cqes[i].res != (int)len)
			fail(ring.cqes[i].res < 0 ? -ring.cqes[i].res : EIO);
	printf("pending %u\nslept %ld\nhelpers %u\n", pending,
	       after.ru_nvcsw - before.ru_nvcsw, helpers);
}

static unsigned long long nanoseconds(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_MONOTONIC, &now))
		fail(errno);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static int in_order(const void *a, const void *b)
{
	unsigned long long x = *(const unsigned long long *)a;
	unsigned long long y = *(const unsigned long long *)b;

	return (x > y) - (x < y);
}

/* How long writes of 4 KiB take, one after the other, in microseconds */
static void do_latency(void)
{
	__u64 offset = number(argv[1]);
	size_t count = number(argv[2]);
	int fd = open(argv[3], O_WRONLY | O_DIRECT);
	const size_t len = 4096;
	void *block = io_buffer(len);
	unsigned long long *took = calloc(count, sizeof(*took));

	if (fd < 0 || !count || !took)
		fail(fd < 0 ? errno : EINVAL);
	memset(block, 'l', len);
	for (size_t i = 0; i < count; i++) {
		unsigned long long begin = nanoseconds();

		if (pwrite(fd, block, len, offset + i * len) != (ssize_t)len)
			fail(errno);
		took[i] = nanoseconds() - begin;
	}
	qsort(took, count, sizeof(*took), in_order);
	printf("median %llu\np99 %llu\nmax %llu\n", took[count / 2] / 1000,
	       took[(count * 99 + 99) / 100 - 1] / 1000, took[count - 1] / 1000);
}

static ssize_t discard(int fd, const void *bytes, size_t len, off_t at)
{
	__u64 range[] = { at, len };

	(void)bytes;
	return ioctl(fd, BLKDISCARD, range) ? -1 : (ssize_t)len;
}

static ssize_t zero_out(int fd, const void *bytes, size_t len, off_t at)
{
	__u64 range[] = { at, len };

	(void)bytes;
	return ioctl(fd, BLKZEROOUT, range) ? -1 : (ssize_t)len;
}

/* How to write; where ->write() does less than asked for, pwrite() does the rest. */
struct way {
	int flags;
	ssize_t (*write)(int fd, const void *bytes, size_t len, off_t at);
	bool zeroes;
	bool contiguous;
};

/* As one piece or not at all; for who has older headers. */
#ifndef RWF_ATOMIC
#define RWF_ATOMIC	0x40
#endif

static ssize_t write_atomic(int fd, const void *bytes, size_t len, off_t at)
{
	const struct iovec iov = { .iov_base = (void *)bytes, .iov_len = len };

	return pwritev2(fd, &iov, 1, at, RWF_ATOMIC);
}

/* Memory whose pages are next to each other, as those of large folios are: that of a ring. */
static void *contiguous_buffer(size_t len)
{
	struct uring ring;

	if (!new_uring(&ring, len / sizeof(*ring.sqes)))
		fail(errno);
	return ring.sqes;
}

#define WAYS	"buffered|direct|dsync|nowait|try|atomic|uring|discard|zeroes,..."

static struct way way_of(char *text)
{
	static const struct {
		const char *name;
		struct way way;
	} ways[] = {
		{ "buffered", {} },
		{ "direct", { .flags = O_DIRECT } },
		{ "dsync", { .flags = O_DSYNC } },
		{ "nowait", { .write = write_sure } },
		{ "try", { .write = write_try } },
		{ "atomic", { .write = write_atomic } },
		{ "uring", { .write = write_uring } },
		{ "discard", { .write = discard, .zeroes = true } },
		{ "zeroes", { .write = zero_out, .zeroes = true } },
		{ "contiguous", { .contiguous = true } },
	};
	struct way way = {};

	for (char *name = strtok(text, ","); name; name = strtok(NULL, ",")) {
		size_t i = 0;

		while (i < ARRAY_SIZE(ways) && strcmp(name, ways[i].name))
			i++;
		if (i == ARRAY_SIZE(ways))
			die("%s: not a way to write", name);
		way.flags |= ways[i].way.flags;
		way.zeroes |= ways[i].way.zeroes;
		way.contiguous |= ways[i].way.contiguous;
		if (ways[i].way.write)
			way.write = ways[i].way.write;
	}
	return way;
}

/*
 * Random bytes, or zeroes: in one @way to the first file at @at, the same to the others
 * at @copy_at.
 */
static void put(struct way way, off_t at, off_t copy_at, size_t len, int files, char **paths)
{
	/* Not words of their own only: the number of bytes may be odd. */
	__u64 *buffer = io_buffer(len + sizeof(__u64));

	for (size_t i = 0; i <= len / sizeof(__u64); i++)
		buffer[i] = way.zeroes ? 0 : next_random();
	for (int i = 0; i < files; i++) {
		int fd = open(paths[i], O_RDWR | (i ? 0 : way.flags));
		ssize_t done = 0;

		if (fd < 0)
			fail(errno);
		if (!i && way.write)
			done = way.write(fd, buffer, len, at);
		if (done < 0)
			fail(errno);
		write_all(fd, (__u8 *)buffer + done, len - done, at + done);
		if (close(fd))
			fail(errno);
		at = copy_at;
	}
	free(buffer);
}

static void do_fill(void)
{
	unsigned long long mebibytes = number(argv[1]);

	for (unsigned long long i = 0; i < mebibytes; i++)
		put((struct way){ .flags = O_DIRECT }, (off_t)i << 20, (off_t)i << 20,
		    1 << 20, argc - 2, argv + 2);
}

static void do_put(void)
{
	char *copy_at = strchr(argv[2], ':');

	if (copy_at)
		*copy_at++ = 0;
	put(way_of(argv[1]), number(argv[2]), number(copy_at ?: argv[2]),
	    number(argv[3]), argc - 4, argv + 4);
}

/* Which of the ways there are to write to a file. */
static void do_can(void)
{
	void *buffer = io_buffer(4096);
	off_t at = number(argv[2]);

	memset(buffer, 'c', 4096);
	for (int i = 3; i < argc; i++) {
		struct way way = way_of(strdup(argv[i]));
		int fd = open(argv[1], O_RDWR | way.flags);

		if (fd < 0)
			fail(errno);
		if (!way.write || way.write(fd, buffer, 4096, at) >= 0)
			printf("%s\n", argv[i]);
		else if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EPERM)
			fail(errno);
		close(fd);
	}
}

static volatile sig_atomic_t stop;

static void on_stop(int signal)
{
	(void)signal;
	stop = 1;
}

static int progress_file(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT, 0600);

	if (fd < 0)
		fail(errno);
	return fd;
}

/*
 * Random bytes at random places until SIGTERM; so both files are the same then. The
 * number of writes so far goes to a third one.
 */
static void do_churn(void)
{
	const size_t unit = 4096;
	__u64 first = number(argv[2]) / unit, count = number(argv[3]) / unit;
	__u64 max = number(argv[4]) / unit, done = 0;
	struct way way = way_of(argv[1]);
	int fd, copy, progress;
	__u64 *buffer;

	if (!max || max > count)
		die("not so many bytes");
	buffer = way.contiguous ? contiguous_buffer(max * unit) : io_buffer(max * unit);
	/* First: who sees the file may send the signal. */
	signal(SIGTERM, on_stop);
	progress = argc > 7 ? progress_file(argv[7]) : -1;
	fd = open(argv[5], O_WRONLY | way.flags);
	copy = open(argv[6], O_WRONLY);
	if (fd < 0 || copy < 0)
		fail(errno);
	while (!stop) {
		__u64 n = next_random() % max + 1;
		off_t at = (first + next_random() % (count - n + 1)) * unit;

		for (size_t i = 0; i < n * unit / sizeof(*buffer); i++)
			buffer[i] = next_random();
		write_all(fd, (__u8 *)buffer, n * unit, at);
		write_all(copy, (__u8 *)buffer, n * unit, at);
		done++;
		if (progress >= 0)
			write_all(progress, (__u8 *)&done, sizeof(done), 0);
	}
	printf("%llu\n", (unsigned long long)done);
	if (close(fd) || close(copy))
		fail(errno);
}

/* Memory that is on swap, until SIGTERM; there is a file as soon as it is. */
static void do_swapped(void)
{
	size_t len = number(argv[1]) << 20;
	__u64 *memory = guarded(len);

	signal(SIGTERM, on_stop);
	for (size_t i = 0; i < len / sizeof(*memory); i++)
		memory[i] = next_random();
	if (madvise(memory, len, MADV_PAGEOUT))
		fail(errno);
	progress_file(argv[2]);
	while (!stop)
		pause();
}

/* Memory that is looked at and changed until SIGTERM; a file is written to each time. */
static void do_hog(void)
{
	const size_t words = 4096 / sizeof(__u64);
	size_t pages = number(argv[1]) << 8;
	__u64 *memory = guarded(pages * words * sizeof(__u64));
	int fd;

	/* First: who sees the file may send the signal. */
	signal(SIGTERM, on_stop);
	fd = progress_file(argv[2]);
	for (__u64 round = 1; ; round++) {
		bool last = stop;

		for (size_t page = 0; page < pages; page++) {
			__u64 *p = memory + page * words;

			for (size_t i = 0; i < words; i++) {
				__u64 want = page * words + i;

				if (round > 1 && p[i] != (round - 1) * 0x9e3779b97f4a7c15 + want)
					die("word %zu of page %zu is wrong", i, page);
				p[i] = round * 0x9e3779b97f4a7c15 + want;
			}
			if (page % 256 == 0)
				write_all(fd, (__u8 *)&round, sizeof(round), 0);
		}
		if (last) {
			printf("%llu\n", (unsigned long long)round);
			return;
		}
	}
}

/* Whether all of the second file is in the first, from a byte on. */
static void do_same(void)
{
	const size_t len = 1 << 20;
	__u8 *a = io_buffer(len), *b = io_buffer(len);
	off_t from = number(arg(3, "0"));
	int fd = open_device(argv[1]), copy = open(argv[2], O_RDONLY);

	if (copy < 0)
		fail(errno);
	for (off_t at = 0; ; at += len) {
		size_t count = read_all(copy, b, len, at);

		if (!count)
			break;
		/* No more than that, but whole blocks */
		if (read_all(fd, a, (count + 4095) & ~4095UL, from + at) < count) {
			printf("%s ends before byte %lld\n", argv[1],
			       (long long)(from + at + count));
			exit(1);
		}
		if (!memcmp(a, b, count))
			continue;
		for (size_t i = 0; i < count; i++) {
			if (a[i] == b[i])
				continue;
			printf("%s differs from %s at byte %lld\n", argv[1],
			       argv[2], (long long)(at + i));
			exit(1);
		}
	}
	free(a);
	free(b);
	close(fd);
	close(copy);
}

/* A read of the image, in two pieces, and a write to the device somewhere in it. */
struct overtaking {
	struct iocb read, write;
	struct iovec pieces[2];
	off_t at;
	size_t len;
	bool written;
	bool overtaken;
};

#define OVERTAKE_BATCH	8
#define OVERTAKE_STRIDE	16384

/*
 * Idle reads of the image and, as soon as they are submitted, writes to the same
 * sectors, which a scheduler lets pass: all that is read must be in the copy. Goes on
 * until COUNT reads were overtaken, which each must be at a place of its own. The
 * places are not in order, since what comes in order is copied ahead.
 */
static void do_overtake(void)
{
	const size_t max = 2 * OVERTAKE_STRIDE, sector = 512;
	int image = open(argv[1], O_RDONLY | O_DIRECT), dev = open(argv[2], O_WRONLY | O_DIRECT);
	int copy = open(argv[3], O_RDONLY);
	__u64 count = number(argv[4]), overtaken = 0, wrong = 0;
	off_t size = lseek(copy, 0, SEEK_END);
	__u64 places, place = 0;
	struct overtaking all[OVERTAKE_BATCH] = {};
	__u8 *buffers = io_buffer(OVERTAKE_BATCH * max), *new = io_buffer(sector);
	__u8 *old = io_buffer(max);
	aio_context_t context = 0;

	if (image < 0 || dev < 0 || size < 0)
		fail(errno);
	if (syscall(__NR_io_setup, 2 * OVERTAKE_BATCH, &context))
		fail(errno);
	memset(new, 0xee, sector);
	/* A read may reach into the next place. */
	places = size / OVERTAKE_STRIDE - 1;

	while (overtaken < count) {
		struct iocb *reads[OVERTAKE_BATCH], *writes[OVERTAKE_BATCH];
		struct io_event events[2 * OVERTAKE_BATCH];
		int n = 0;

		if (place + OVERTAKE_BATCH > places)
			die("only %llu of %llu reads were overtaken",
			    (unsigned long long)overtaken, (unsigned long long)place);
		for (int i = 0; i < OVERTAKE_BATCH; i++) {
			struct overtaking *o = &all[i];
			size_t skip = next_random() % (OVERTAKE_STRIDE / sector);
			size_t sectors = next_random() % (max / sector - skip) + 1;
			size_t cut = next_random() % sectors;
			__u8 *buffer = buffers + i * max;

			/* By a prime, so that each comes once. */
			o->at = place++ * 7919 % places * OVERTAKE_STRIDE + skip * sector;
			o->len = sectors * sector;
			o->written = false;
			o->overtaken = false;
			o->pieces[0].iov_base = buffer;
			o->pieces[0].iov_len = cut * sector;
			o->pieces[1].iov_base = buffer + cut * sector;
			o->pieces[1].iov_len = (sectors - cut) * sector;
			o->read = (struct iocb) {
				.aio_data = (uintptr_t)o,
				.aio_lio_opcode = IOCB_CMD_PREADV,
				.aio_fildes = image,
				.aio_buf = (uintptr_t)(o->pieces + !cut),
				.aio_nbytes = 1 + !!cut,
				.aio_offset = o->at,
				.aio_flags = IOCB_FLAG_IOPRIO,
				.aio_reqprio = IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0),
			};
			o->write = (struct iocb) {
				.aio_data = (uintptr_t)o,
				.aio_lio_opcode = IOCB_CMD_PWRITE,
				.aio_fildes = dev,
				.aio_buf = (uintptr_t)new,
				.aio_nbytes = sector,
				.aio_offset = o->at + next_random() % sectors * sector,
			};
			reads[i] = &o->read;
			writes[i] = &o->write;
		}
		if (syscall(__NR_io_submit, context, OVERTAKE_BATCH, reads) != OVERTAKE_BATCH ||
		    syscall(__NR_io_submit, context, OVERTAKE_BATCH, writes) != OVERTAKE_BATCH)
			fail(errno);
		while (n < 2 * OVERTAKE_BATCH) {
			int more = syscall(__NR_io_getevents, context, 1,
					   2 * OVERTAKE_BATCH - n, events + n, NULL);

			if (more < 0)
				fail(errno);
			for (; more; more--, n++) {
				struct overtaking *o = (void *)(uintptr_t)events[n].data;
				bool write = (uintptr_t)events[n].obj == (uintptr_t)&o->write;

				if (events[n].res < 0)
					fail(-events[n].res);
				if (write)
					o->written = true;
				else
					o->overtaken = o->written;
			}
		}
		for (int i = 0; i < OVERTAKE_BATCH; i++) {
			overtaken += all[i].overtaken;
			if (read_all(copy, old, all[i].len, all[i].at) != all[i].len)
				die("the copy is too short");
			wrong += !!memcmp(old, buffers + i * max, all[i].len);
		}
	}
	printf("reads %llu\novertaken %llu\nwrong %llu\n", (unsigned long long)place,
	       (unsigned long long)overtaken, (unsigned long long)wrong);
}

/*
 * Gives the file system with DIR a key, and with a second argument makes it the key of the
 * empty directory DIR. The key is always the same.
 */
/* Exchanges the backing file of a loop device that is read-only. */
static void do_change_fd(void)
{
	int fd = open(argv[2], O_RDONLY);

	if (fd < 0)
		fail(errno);
	if (ioctl(open_device(argv[1]), LOOP_CHANGE_FD, fd))
		fail(errno);
}

static void do_encrypt(void)
{
	const size_t len = 64;
	struct fscrypt_add_key_arg *key = calloc(1, sizeof(*key) + len);
	struct fscrypt_policy_v2 policy = {
		.version = FSCRYPT_POLICY_V2,
		.contents_encryption_mode = FSCRYPT_MODE_AES_256_XTS,
		.filenames_encryption_mode = FSCRYPT_MODE_AES_256_CTS,
		.flags = FSCRYPT_POLICY_FLAGS_PAD_32,
	};
	int dir = open(argv[1], O_RDONLY | O_DIRECTORY);

	if (dir < 0 || !key)
		fail(errno);
	key->key_spec.type = FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER;
	key->raw_size = len;
	for (size_t i = 0; i < len; i++)
		key->raw[i] = i * 7;
	if (ioctl(dir, FS_IOC_ADD_ENCRYPTION_KEY, key))
		fail(errno);
	memcpy(policy.master_key_identifier, key->key_spec.u.identifier,
	       sizeof(policy.master_key_identifier));
	if (argc > 2 && ioctl(dir, FS_IOC_SET_ENCRYPTION_POLICY, &policy))
		fail(errno);
}

static void do_uncache(void)
{
	for (int i = 1; i < argc; i++) {
		int fd = open_device(argv[i]);

		if (ioctl(fd, BLKFLSBUF))
			fail(errno);
		close(fd);
	}
}

static void run_command(void);

/* The last comment, and what is being done. */
static char comment[4096], command[4096];

static void say_command(void)
{
	if (*command)
		printf("%s%s", comment, command);
}

/* Runs the commands on stdin, one a line, until one of them fails. */
static void do_run(void)
{
	static char line[sizeof(command)], *words[sizeof(line)];

	atexit(say_command);
	while (fgets(line, sizeof(line), stdin)) {
		if (*line == '#') {
			strcpy(comment, line);
			continue;
		}
		strcpy(command, line);
		argc = 0;
		argv = words;
		for (char *word = strtok(line, "\n "); word; word = strtok(NULL, "\n "))
			words[argc++] = word;
		run_command();
	}
	*command = 0;
}

static const struct {
	const char *name;
	int min, max;
	void (*run)(void);
	const char *arguments;
} commands[] = {
	{ "abi", 0, 0, do_abi, "" },
	{ "version", 0, 0, do_version, "" },
	{ "attach", 1, 4, do_attach, "DEV [NAME [OPTLEN [BYTES]]]" },
	{ "detach", 1, 2, do_detach, "DEV [NAME]" },
	{ "ctl", 5, 5, do_ctl, "DEV NAME CMD OPTLEN BYTES" },
	{ "create", 2, 2, do_create, "PATH|bad SECTORS" },
	{ "create-empty", 0, 1, do_create_empty, "[FLAGS]" },
	{ "own", 4, 4, do_own, "COUNT PATH SECTORS DEV" },
	{ "append", 2, 99999, do_append, "ID DEV [OFFSET:COUNT... | bad]" },
	{ "freeze", 2, 3, do_freeze, "ID DEV|fd:NUMBER [FLAGS]" },
	{ "limit", 2, 2, do_limit, "ID SECTORS" },
	{ "low-space", 2, 2, do_low_space, "ID SECTORS" },
	{ "space", 1, 1, do_space, "ID" },
	{ "add", 2, 2, do_add, "DEV ID" },
	{ "take", 1, 1, do_take, "ID" },
	{ "info", 1, 1, do_info, "DEV" },
	{ "destroy", 1, 1, do_destroy, "ID" },
	{ "collect", 0, 1, do_collect, "[COUNT|null|bad]" },
	{ "wait", 2, 2, do_wait, "ID MILLISECONDS" },
	{ "poll", 1, 2, do_poll, "MILLISECONDS [ID]" },
	{ "cbtinfo", 1, 1, do_cbtinfo, "DEV" },
	{ "cbtmap", 3, 4, do_cbtmap, "DEV OFFSET LENGTH [bad]" },
	{ "marks", 1, 1, do_marks, "DEV" },
	{ "cbttakes", 1, 3, do_cbttakes, "DEV [COUNT|null|bad [SIZE]]" },
	{ "cbtdirty", 1, 999, do_cbtdirty, "DEV OFFSET:COUNT... | DEV bad [COUNT]" },
	{ "select", 2, 5, do_select, "DEV TAKE_ID [FLAGS [BYTES [LAST_BYTE]]]" },
	{ "raw", 3, 3, do_raw, "FILE REQUEST BYTES" },
	{ "scsi", 4, 4, do_scsi, "DEV in|out CDB BYTES" },
	{ "nvme", 4, 4, do_nvme, "DEV OPCODE BLOCK BYTES" },
	{ "cycle", 4, 4, do_cycle, "DEV PATH SECTORS ROUNDS" },
	{ "count", 1, 999, do_count, "DEV..." },
	{ "fill", 2, 999, do_fill, "MEBIBYTES FILE..." },
	{ "put", 4, 999, do_put, WAYS " OFFSET[:OFFSET] BYTES FILE [COPY]..." },
	{ "can", 3, 999, do_can, "FILE OFFSET WAY..." },
	{ "churn", 6, 7, do_churn,
	  "buffered|direct|dsync|contiguous,... OFFSET BYTES MAX FILE COPY [PROGRESS]" },
	{ "hog", 2, 2, do_hog, "MEBIBYTES FILE" },
	{ "swapped", 2, 2, do_swapped, "MEBIBYTES FILE" },
	{ "same", 2, 3, do_same, "FILE COPY [OFFSET]" },
	{ "overtake", 4, 4, do_overtake, "IMAGE DEV COPY COUNT" },
	{ "nowait", 3, 3, do_nowait, "DEV OFFSET END" },
	{ "submit", 3, 3, do_submit, "DEV COUNT STRIDE" },
	{ "latency", 3, 3, do_latency, "OFFSET COUNT DEV" },
	{ "change_fd", 2, 2, do_change_fd, "DEV FILE" },
	{ "encrypt", 1, 2, do_encrypt, "DIR [new]" },
	{ "uncache", 1, 999, do_uncache, "DEV..." },
	{ "run", 0, 0, do_run, "" },
};

static void __attribute__((noreturn)) usage(void)
{
	fprintf(stderr, "usage: blksnap_ctl [-u] [-U] [-c] [-r] [-f] COMMAND ...\n"
		"  -u  without CAP_SYS_ADMIN    -U  in a user namespace of its own\n"
		"  -c  as a 32-bit program      -r  the ioctl's argument is read-only\n"
		"  -f  with fault injection\n"
		"  DEV may be fd:NUMBER, BYTES are hex, zero:LENGTH, null or bad\n");
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		fprintf(stderr, "  %s %s\n", commands[i].name, commands[i].arguments);
	exit(WRONG);
}

static void run_command(void)
{
	for (size_t i = 0; argc && i < ARRAY_SIZE(commands); i++) {
		if (strcmp(argv[0], commands[i].name))
			continue;
		if (argc - 1 < commands[i].min || argc - 1 > commands[i].max)
			usage();
		commands[i].run();
		return;
	}
	usage();
}

int main(int count, char **values)
{
	int opt;

	while ((opt = getopt(count, values, "+uUcrf")) != -1) {
		switch (opt) {
		case 'u':
			no_cap = true;
			break;
		case 'U':
			user_ns = true;
			break;
		case 'c':
			compat = true;
			break;
		case 'r':
			read_only = true;
			break;
		case 'f':
			may_fail = true;
			break;
		default:
			usage();
		}
	}
	argc = count - optind;
	argv = values + optind;
	run_command();
	return 0;
}
