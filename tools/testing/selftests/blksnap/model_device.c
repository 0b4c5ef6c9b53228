// SPDX-License-Identifier: GPL-2.0-only
/*
 * The device, its snapshot, what went on, and random numbers.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/fs.h>
#include <linux/loop.h>

#include "model.h"

struct path paths[2];
int nr_paths;
const char *backing, *badblocks;
__s64 max_sectors;
enum falsification falsification;
struct statistics statistics;
struct snapshot snapshot;

static int control;
static struct blksnap_uuid id;

/*
 * What a round does depends on the seed and its number only, whatever came before it.
 */

static __u64 the_seed, the_round, state;

__u64 next_random(void)
{
	__u64 z = state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

void begin_random(__u64 seed, __u64 round)
{
	the_seed = seed;
	the_round = round;
	state = round;
	state = seed ^ next_random();
}

__u64 below(__u64 n)
{
	return next_random() % n;
}

bool one_in(__u64 n)
{
	return !below(n);
}

/*
 * What was done last; it is told when something is wrong.
 */

static struct {
	__u64 round;
	struct span span;
	char text[80];
} notes[400];

static unsigned int nr_notes;

void note(struct span span, const char *format, ...)
{
	unsigned int i = nr_notes++ % ARRAY_SIZE(notes);
	va_list args;

	notes[i].round = the_round;
	notes[i].span = span;
	va_start(args, format);
	vsnprintf(notes[i].text, sizeof(notes[i].text), format, args);
	va_end(args);
}

static bool overlap(struct span a, struct span b)
{
	return a.at < b.at + b.len && b.at < a.at + a.len;
}

void wrong(struct span span, const char *format, ...)
{
	unsigned int i = nr_notes > ARRAY_SIZE(notes) ? nr_notes - ARRAY_SIZE(notes) : 0;
	va_list args;

	printf("what was done; a star is what touches the place:\n");
	for (; i < nr_notes; i++) {
		typeof(notes[0]) *n = &notes[i % ARRAY_SIZE(notes)];

		printf("%c %6llu: %s", overlap(n->span, span) ? '*' : ' ',
		       (unsigned long long)n->round, n->text);
		if (n->span.len)
			printf(", sectors %lld+%lld", (long long)n->span.at,
			       (long long)n->span.len);
		putchar('\n');
	}
	printf("%s: round %llu of seed %llu: ", paths[0].name,
	       (unsigned long long)the_round, (unsigned long long)the_seed);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	if (span.len)
		printf(" (sectors %lld+%lld)", (long long)span.at, (long long)span.len);
	putchar('\n');
	exit(1);
}

/* For what is not the driver's to do. */
void fatal(const char *what)
{
	wrong((struct span) {}, "%s: %s", what, strerror(errno));
}

/*
 * The device
 */

void *allocate(size_t len)
{
	/* Pages, for direct I/O */
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		fatal("memory");
	return p;
}

/* Where it begins on its disk */
static __s64 start_of(const char *path)
{
	const char *name = strrchr(path, '/') + 1;
	long long start = 0;
	char file[256];
	FILE *f;

	snprintf(file, sizeof(file), "/sys/class/block/%s/start", name);
	f = fopen(file, "r");
	/* A whole disk has no such file. */
	if (!f)
		return 0;
	if (fscanf(f, "%lld", &start) != 1)
		fatal(file);
	fclose(f);
	return start;
}

static __s64 sectors_of(int fd)
{
	__u64 bytes;

	if (ioctl(fd, BLKGETSIZE64, &bytes))
		fatal("BLKGETSIZE64");
	return bytes / SECTOR;
}

static void open_path(const char *name)
{
	struct path *path = &paths[nr_paths++];

	path->name = name;
	path->direct = open(name, O_RDWR | O_DIRECT);
	path->buffered = open(name, O_RDWR);
	if (path->direct < 0 || path->buffered < 0)
		fatal(name);
	path->span.at = start_of(name) - start_of(paths[0].name);
	path->span.len = sectors_of(path->direct);
}

void open_paths(const char *device, const char *other)
{
	control = open("/dev/" BLKSNAP_CTL, O_RDONLY);
	if (control < 0)
		fatal("/dev/" BLKSNAP_CTL);
	open_path(device);
	if (other)
		open_path(other);
	max_sectors = nr_sectors;
}

void resize(__s64 sectors)
{
	if (truncate(backing, sectors * SECTOR))
		fatal(backing);
	if (ioctl(paths[0].direct, LOOP_SET_CAPACITY, 0))
		fatal("LOOP_SET_CAPACITY");
	nr_sectors = sectors_of(paths[0].direct);
	if (nr_sectors != sectors)
		wrong((struct span) {}, "the device has not got %lld sectors", (long long)sectors);
}

/* Whether sectors of the null_blk are bad from now on, or none of them. */
void set_bad(struct span span, bool bad)
{
	FILE *f = fopen(badblocks, "w");
	__s64 start = start_of(paths[0].name);

	if (!f)
		fatal(badblocks);
	fprintf(f, "%c%lld-%lld", bad ? '+' : '-', (long long)(start + span.at),
		(long long)(start + span.at + span.len - 1));
	if (fclose(f))
		fatal(badblocks);
}

void read_device(const struct path *path, void *buffer, struct span span)
{
	off_t at = (span.at - path->span.at) * SECTOR;

	if (pread(path->direct, buffer, span.len * SECTOR, at) != span.len * SECTOR)
		fatal(path->name);
}

/*
 * The driver
 */

void attach(void)
{
	struct blkfilter_attach arg = { .name = BLKSNAP_FILTER_NAME };

	if (ioctl(paths[0].direct, BLKFILTER_ATTACH, &arg))
		fatal("BLKFILTER_ATTACH");
}

void detach(void)
{
	struct blkfilter_detach arg = { .name = BLKSNAP_FILTER_NAME };

	if (ioctl(paths[0].direct, BLKFILTER_DETACH, &arg))
		fatal("BLKFILTER_DETACH");
}

static int filter(__u32 cmd, void *opt, __u32 len)
{
	struct blkfilter_ctl arg = {
		.name = BLKSNAP_FILTER_NAME, .cmd = cmd, .optlen = len, .opt = (uintptr_t)opt,
	};

	return ioctl(paths[0].direct, BLKFILTER_CTL, &arg) ? errno : 0;
}

struct blksnap_cbtinfo read_info(void)
{
	static struct blksnap_uuid first;
	struct blksnap_cbtinfo info;

	errno = filter(BLKSNAP_FILTER_CBTINFO, &info, sizeof(info));
	if (errno)
		fatal("CBTINFO");
	if (falsification == GENERATION) {
		static const struct blksnap_uuid none;

		if (!memcmp(&first, &none, sizeof(none)))
			first = info.generation_id;
		info.generation_id = first;
	}
	return info;
}

int read_map(__u8 *map, __u32 offset, __u32 length)
{
	struct blksnap_cbtmap arg = {
		.offset = offset, .length = length, .buffer = (uintptr_t)map,
	};
	__u32 block = model_block();
	int error = filter(BLKSNAP_FILTER_CBTMAP, &arg, sizeof(arg));

	if (!error && block >= offset && block - offset < length) {
		if (falsification == LOSE)
			map[block - offset] = 0;
		else if (falsification == ADD)
			map[block - offset] = read_info().changes_number;
	}
	return error;
}

void mark_dirty(struct span span)
{
	struct blksnap_sectors sectors = { .offset = span.at, .count = span.len };
	struct blksnap_cbtdirty arg = { .count = 1, .dirty_sectors = (uintptr_t)&sectors };

	errno = filter(BLKSNAP_FILTER_CBTDIRTY, &arg, sizeof(arg));
	if (errno)
		fatal("CBTDIRTY");
}

void create_snapshot(const char *directory, __u64 limit)
{
	struct blksnap_snapshot_create create = {
		.diff_storage_limit_sect = limit, .diff_storage_filename = (uintptr_t)directory,
	};
	struct blksnap_snapshotadd add;

	if (ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_CREATE, &create))
		fatal("SNAPSHOT_CREATE");
	id = create.id;
	add.id = id;
	errno = filter(BLKSNAP_FILTER_SNAPSHOTADD, &add, sizeof(add));
	if (errno)
		fatal("SNAPSHOTADD");
	snapshot.exists = true;
	snapshot.may_break = false;
	snapshot.image = -1;
}

static struct blksnap_snapshotinfo snapshot_info(void)
{
	struct blksnap_snapshotinfo info;

	errno = filter(BLKSNAP_FILTER_SNAPSHOTINFO, &info, sizeof(info));
	if (errno)
		fatal("SNAPSHOTINFO");
	return info;
}

void take_snapshot(void)
{
	struct blksnap_snapshotinfo info;
	char image[64];

	snapshot.sectors = nr_sectors;
	if (!snapshot.may_lose)
		snapshot.may_lose = allocate(max_sectors);
	memset(snapshot.may_lose, false, max_sectors);
	if (ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_TAKE, &id))
		fatal("SNAPSHOT_TAKE");
	info = snapshot_info();
	snprintf(image, sizeof(image), "/dev/%s", info.image);
	snapshot.image = open(image, O_RDONLY | O_DIRECT);
	if (snapshot.image < 0)
		fatal(image);
	if (sectors_of(snapshot.image) != snapshot.sectors)
		wrong((struct span) {}, "the image has another size");
}

/* A snapshot without storage cannot be taken. */
void take_fails(void)
{
	struct blksnap_snapshot_create_empty create = {};
	struct blksnap_snapshotadd add;

	if (ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_CREATE_EMPTY, &create))
		fatal("SNAPSHOT_CREATE_EMPTY");
	add.id = create.id;
	errno = filter(BLKSNAP_FILTER_SNAPSHOTADD, &add, sizeof(add));
	if (errno)
		fatal("SNAPSHOTADD");
	if (!ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_TAKE, &create.id) || errno != ENOSPC)
		fatal("SNAPSHOT_TAKE without storage");
	if (ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_DESTROY, &create.id))
		fatal("SNAPSHOT_DESTROY");
}

void destroy_snapshot(void)
{
	/* While the image is in use, or when it is no more */
	bool in_use = one_in(4);

	if (!in_use && snapshot.image >= 0)
		close(snapshot.image);
	if (ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_DESTROY, &id))
		fatal("SNAPSHOT_DESTROY");
	if (in_use && snapshot.image >= 0)
		close(snapshot.image);
	snapshot.exists = false;
}

static struct span chunk_of(__s64 sector)
{
	__s64 len = (__s64)sysconf(_SC_PAGESIZE) / SECTOR, start = sector / len * len;

	return (struct span) { start, min(len, snapshot.sectors - start) };
}

void may_lose(struct span bad)
{
	for (__s64 n = bad.at; snapshot.may_lose && n < bad.at + bad.len; n++) {
		struct span chunk = chunk_of(n);

		for (__s64 i = 0; i < chunk.len; i++)
			snapshot.may_lose[chunk.at + i] = true;
	}
}

static bool try_image(__u8 *buffer, struct span span)
{
	ssize_t len = span.len * SECTOR;

	return pread(snapshot.image, buffer, len, span.at * SECTOR) == len;
}

bool read_image(__u8 *buffer, struct span span)
{
	int error;

	if (try_image(buffer, span)) {
		if (falsification == IMAGE && !span.at && span.len > 1)
			buffer[SECTOR + 1] ^= 1;
		return true;
	}
	error = snapshot_info().error_code;
	if (error && snapshot.may_break)
		return false;
	if (error)
		wrong(span, "the snapshot is broken: %d", error);
	statistics.lost++;
	for (__s64 n = span.at; n < span.at + span.len;) {
		struct span chunk = chunk_of(n);

		chunk.len = min(chunk.at + chunk.len, span.at + span.len) - n;
		chunk.at = n;
		if (!try_image(buffer + (n - span.at) * SECTOR, chunk) && !snapshot.may_lose[n]) {
			error = errno;
			/* Broken since then */
			if (snapshot.may_break && snapshot_info().error_code)
				return false;
			wrong(chunk, "the image cannot be read: %s", strerror(error));
		}
		n += chunk.len;
	}
	return true;
}
