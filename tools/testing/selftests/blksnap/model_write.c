// SPDX-License-Identifier: GPL-2.0-only
/*
 * All ways to write, also several at once.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <linux/aio_abi.h>
#include <linux/falloc.h>
#include <linux/fs.h>

#include "model.h"

/* What the page cache writes at a time */
#define PAGE_SECTORS	(4096 / SECTOR)

#define MAX_WRITES	16
#define MAX_THREADS	4
#define MAX_LENGTH	1024

__u8 *now, *before;
bool *touched;

static const char * const names[NR_WAYS] = {
	[DIRECT] = "direct", [VECTORED] = "vectored", [SYNCHRONOUS] = "synchronous",
	[BUFFERED] = "buffered", [ZERO_OUT] = "zeroed", [ZERO_RANGE] = "zero range",
	[PUNCH] = "hole", [DISCARD] = "discard", [SECURE_ERASE] = "secure erase",
	[LAZY] = "lazy",
};

/* In the middle of writes, how they began: those that are under way */
static struct write writes[MAX_WRITES];
static int nr_writes;

static bool zeroes(enum way way)
{
	return way >= ZERO_OUT && way <= SECURE_ERASE;
}

/* Often at a border of blocks, or at an end of the device */
struct span random_span(void)
{
	__s64 block = block_sectors;
	struct span span;

	switch (below(6)) {
	case 0:
		span.len = 1;
		break;
	case 1:
		span.len = block;
		break;
	case 2:
		span.len = 1 + below(MAX_LENGTH);
		break;
	default:
		span.len = 1 + below(16);
	}
	span.len = min(span.len, nr_sectors);
	span.at = below(nr_sectors - span.len + 1);
	switch (below(6)) {
	case 0:
		/* From a border on */
		span.at -= span.at % block;
		break;
	case 1:
		/* Up to one */
		span.at += block - (span.at + span.len) % block;
		break;
	case 2:
		/* Over one, by a sector or two on either side */
		span.len = min(span.len, 4);
		span.at += block - span.at % block - min(span.len, 1 + (__s64)below(2));
		break;
	case 3:
		span.at = nr_sectors - span.len;
		break;
	}
	span.at = max(min(span.at, nr_sectors - span.len), 0);
	return span;
}

/* The page cache has whole pages, of the way to the device that it belongs to. */
static struct span may_change(const struct write *w)
{
	struct span span = w->span;
	__s64 at = span.at - w->path->span.at, end;

	if (w->way != BUFFERED && w->way != LAZY)
		return span;
	end = (at + span.len + PAGE_SECTORS - 1) / PAGE_SECTORS * PAGE_SECTORS;
	at -= at % PAGE_SECTORS;
	end = min(end, w->path->span.len);
	return (struct span) { .at = at + w->path->span.at, .len = end - at };
}

static struct write new_write(int nr_ways)
{
	struct write w = { .way = below(nr_ways), .path = &paths[below(nr_paths)] };
	const struct span *path = &w.path->span;

	/* Data is the rule. */
	if (zeroes(w.way) && one_in(2))
		w.way = DIRECT;
	w.span = random_span();
	/* Also what is only partly on the device, if the path leads further */
	if (one_in(8))
		w.span.at -= below(2 * w.span.len);
	w.span.at = max(w.span.at, path->at);
	w.span.at = min(w.span.at, path->at + path->len - 1);
	w.span.len = min(w.span.len, path->at + path->len - w.span.at);
	w.data = allocate(w.span.len * SECTOR);
	if (!zeroes(w.way))
		for (size_t i = 0; i < w.span.len * SECTOR / sizeof(__u64); i++)
			((__u64 *)w.data)[i] = next_random();
	return w;
}

static void forget(struct write *w)
{
	munmap(w->data, w->span.len * SECTOR);
}

static ssize_t vectored(int fd, __u8 *data, size_t len, off_t at)
{
	struct iovec pieces[4];
	int n = 0;

	/* Sectors 1, 2, 4 and the rest: not all of them are pages. */
	for (size_t piece = SECTOR; len; piece *= 2) {
		size_t this = n == ARRAY_SIZE(pieces) - 1 ? len : min(piece, len);

		pieces[n].iov_base = data;
		pieces[n++].iov_len = this;
		data += this;
		len -= this;
	}
	return pwritev(fd, pieces, n, at);
}

/* Returns an error number. Only what is not there must not change anything. */
static int try_write(const struct write *w)
{
	int direct = w->path->direct, buffered = w->path->buffered;
	off_t at = (w->span.at - w->path->span.at) * SECTOR;
	size_t len = w->span.len * SECTOR;
	__u64 range[] = { at, len };
	ssize_t done = len;
	int error = 0;

	switch (w->way) {
	case DIRECT:
		done = pwrite(direct, w->data, len, at);
		break;
	case VECTORED:
		done = vectored(direct, w->data, len, at);
		break;
	case SYNCHRONOUS: {
		struct iovec all = { w->data, len };

		done = pwritev2(direct, &all, 1, at, RWF_DSYNC);
		break;
	}
	case BUFFERED:
	case LAZY:
		done = pwrite(buffered, w->data, len, at);
		if (done > 0 && w->way == BUFFERED && fdatasync(buffered))
			error = errno;
		break;
	case ZERO_OUT:
		error = ioctl(direct, BLKZEROOUT, range) ? errno : 0;
		break;
	case ZERO_RANGE:
		error = fallocate(direct, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, at, len) ?
			errno : 0;
		break;
	case PUNCH:
		error = fallocate(direct, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, len) ?
			errno : 0;
		break;
	case DISCARD:
		error = ioctl(direct, BLKDISCARD, range) ? errno : 0;
		break;
	case SECURE_ERASE:
		error = ioctl(direct, BLKSECDISCARD, range) ? errno : 0;
		break;
	case NR_WAYS:
		break;
	}
	if (done < 0)
		error = errno;
	else if (done != (ssize_t)len)
		error = EIO;
	/* The other path must not see what was there once. */
	if (w->way == BUFFERED)
		posix_fadvise(buffered, 0, 0, POSIX_FADV_DONTNEED);
	return error;
}

static int perform(const struct write *w)
{
	int error;

	/* Where a dm device has the disk, a page that is just written is in the way of zeroes. */
	while ((error = try_write(w)) == EBUSY)
		usleep(1000);
	return error;
}

static void note_write(const struct write *w, const char *more)
{
	note(w->span, "%s %s%s", names[w->way], w->path->name, more);
}

/* The sectors that are on the device */
static struct span on_device(struct span span)
{
	__s64 end = min(span.at + span.len, nr_sectors);

	span.at = max(span.at, 0);
	span.len = max(end - span.at, 0);
	return span;
}

bool is_possible(__s64 sector, const __u8 *bytes)
{
	const __u8 *old = touched[sector] ? before : now;

	if (!memcmp(old + sector * SECTOR, bytes, SECTOR))
		return true;
	for (int i = 0; i < nr_writes; i++) {
		__s64 at = sector - writes[i].span.at;

		if (at >= 0 && at < writes[i].span.len &&
		    !memcmp(writes[i].data + at * SECTOR, bytes, SECTOR))
			return true;
	}
	return false;
}

/* What became of the sectors of the writes */
static void settle(void)
{
	__u8 *sector = allocate(max_sectors * SECTOR);

	memset(touched, 0, max_sectors);
	for (int i = 0; i < nr_writes; i++) {
		struct span span = on_device(may_change(&writes[i]));

		if (!span.len)
			continue;
		read_device(&paths[0], sector, span);
		for (__s64 n = 0; n < span.len; n++) {
			__s64 at = span.at + n;

			if (!touched[at]) {
				memcpy(before + at * SECTOR, now + at * SECTOR, SECTOR);
				touched[at] = true;
			}
			if (!is_possible(at, sector + n * SECTOR))
				wrong((struct span) { at, 1 }, "the device has something else");
			memcpy(now + at * SECTOR, sector + n * SECTOR, SECTOR);
		}
	}
	munmap(sector, max_sectors * SECTOR);
}

static void forget_all(void)
{
	for (int i = 0; i < nr_writes; i++)
		forget(&writes[i]);
	nr_writes = 0;
}

/* One, and nothing else meanwhile */
void write_something(void)
{
	struct write w = new_write(LAZY);
	int error = perform(&w);

	note_write(&w, error ? ": not there" : "");
	if (!error) {
		struct span span = on_device(w.span);

		model_written(span, on_device(may_change(&w)));
		memcpy(now + span.at * SECTOR, w.data + (span.at - w.span.at) * SECTOR,
		       span.len * SECTOR);
		statistics.writes++;
	} else if (error != EOPNOTSUPP || !zeroes(w.way)) {
		errno = error;
		fatal(names[w.way]);
	}
	forget(&w);
}

/* Some of what is written, or all of it, is lost. */
void write_failing(void)
{
	struct span bad, none = {};
	int error;

	forget_all();
	writes[0] = new_write(ZERO_OUT);
	nr_writes = 1;
	bad = writes[0].span;
	bad.at += below(bad.len);
	bad.len = 1 + below(min(bad.len, 8));
	may_lose(bad);
	set_bad(bad, true);
	error = perform(&writes[0]);
	set_bad(bad, false);
	/* What was in the page cache is told once to everyone who has the device open. */
	for (int i = 0; i < nr_paths; i++) {
		fdatasync(paths[i].direct);
		fdatasync(paths[i].buffered);
	}
	note_write(&writes[0], error ? ": failed" : "");
	if (!error)
		wrong(writes[0].span, "it did not fail");
	model_written(none, on_device(may_change(&writes[0])));
	settle();
	forget_all();
}

/*
 * Writes in threads, which overlap, while something else is done
 */

static struct thread {
	pthread_t id;
	int first, count;
	bool submit;
	useconds_t delay;
	const char *error;
} threads[MAX_THREADS];

static int nr_threads;

/* Has them all under way at once. */
static const char *submit(struct thread *t)
{
	struct iocb all[MAX_WRITES] = {}, *list[MAX_WRITES];
	struct io_event events[MAX_WRITES];
	const char *error = NULL;
	aio_context_t aio = 0;

	if (syscall(__NR_io_setup, MAX_WRITES, &aio))
		return "io_setup";
	for (int i = 0; i < t->count; i++) {
		struct write *w = &writes[t->first + i];

		all[i].aio_lio_opcode = IOCB_CMD_PWRITE;
		all[i].aio_fildes = w->path->direct;
		all[i].aio_buf = (uintptr_t)w->data;
		all[i].aio_nbytes = w->span.len * SECTOR;
		all[i].aio_offset = (w->span.at - w->path->span.at) * SECTOR;
		list[i] = &all[i];
	}
	if (syscall(__NR_io_submit, aio, t->count, list) != t->count ||
	    syscall(__NR_io_getevents, aio, t->count, t->count, events, NULL) != t->count)
		error = "io_submit";
	for (int i = 0; !error && i < t->count; i++)
		if (events[i].res != (__s64)((struct iocb *)(uintptr_t)events[i].obj)->aio_nbytes)
			error = "a write that was submitted";
	for (int i = 0; !error && i < t->count; i++)
		writes[t->first + i].done = true;
	syscall(__NR_io_destroy, aio);
	return error;
}

static void *write_all(void *arg)
{
	struct thread *t = arg;

	usleep(t->delay);
	if (t->submit) {
		t->error = submit(t);
		return NULL;
	}
	for (int i = t->first; i < t->first + t->count; i++) {
		int error = perform(&writes[i]);

		writes[i].done = !error;
		if (error && (error != EOPNOTSUPP || !zeroes(writes[i].way)))
			t->error = names[writes[i].way];
	}
	return NULL;
}

void begin_writes(bool some)
{
	/* The kernel does not promise anything to those who do both at once. */
	bool cached = one_in(2);

	forget_all();
	nr_threads = some ? 1 + below(MAX_THREADS) : 0;
	for (int i = 0; i < nr_threads; i++) {
		struct thread *t = &threads[i];

		*t = (struct thread) {
			.first = nr_writes, .count = 1 + below(MAX_WRITES / MAX_THREADS),
			.submit = !cached && one_in(2), .delay = below(3000),
		};
		for (int n = 0; n < t->count; n++) {
			struct write *w = &writes[nr_writes++];

			*w = new_write(t->submit ? SYNCHRONOUS : NR_WAYS);
			if (cached && w->way < BUFFERED)
				w->way = BUFFERED;
			else if (!cached && (w->way == BUFFERED || w->way == LAZY))
				w->way = DIRECT;
			note_write(w, ", begun");
		}
	}
	for (int i = 0; i < nr_threads; i++) {
		errno = pthread_create(&threads[i].id, NULL, write_all, &threads[i]);
		if (errno)
			fatal("a thread");
	}
}

void end_writes(void)
{
	for (int i = 0; i < nr_threads; i++)
		pthread_join(threads[i].id, NULL);
	for (int i = 0; i < nr_threads; i++)
		if (threads[i].error)
			wrong((struct span) {}, "%s failed", threads[i].error);
	/* What is in the page cache still is written now. */
	for (int i = 0; i < nr_paths; i++) {
		if (fdatasync(paths[i].buffered))
			fatal("fdatasync");
		posix_fadvise(paths[i].buffered, 0, 0, POSIX_FADV_DONTNEED);
	}
	if (nr_writes)
		note((struct span) {}, "they have ended");
	settle();
	statistics.concurrent += nr_writes;
}

/*
 * Whether pages of a write may have been dropped before they were written. fallocate() drops the
 * dirty pages of a range before it finds out that the device cannot write zeroes.
 */
static bool may_be_dropped(const struct write *w)
{
	if (w->way == LAZY)
		return true;
	for (int i = 0; i < nr_writes && w->way == BUFFERED; i++) {
		const struct write *other = &writes[i];

		if (zeroes(other->way) && !other->done && other->path == w->path &&
		    other->span.at < w->span.at + w->span.len &&
		    w->span.at < other->span.at + other->span.len)
			return true;
	}
	return false;
}

/* What is known of those that began last */
void tell_writes(void (*tell)(struct span must, struct span may))
{
	for (int i = 0; i < nr_writes; i++) {
		const struct write *w = &writes[i];
		struct span none = {};
		bool sure = w->done && !may_be_dropped(w);

		tell(sure ? on_device(w->span) : none, on_device(may_change(w)));
	}
}
