/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of blksnap_model share.
 *
 * model_device.c  the device, its snapshot, what went on, and random numbers
 * model_write.c   all ways to write, also several at once
 * model_check.c   what the change map must say, and what it did
 * blksnap_model.c operations, rounds and the command line
 *
 * Positions and lengths are in sectors of 512 bytes.
 */
#ifndef MODEL_H
#define MODEL_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/blk-filter.h>
#include <linux/blksnap.h>

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define __printf(a, b)	__attribute__((format(printf, a, b)))
#define __noreturn	__attribute__((noreturn))

#define SECTOR		512
#define MAX_MAP		65536

/* The highest number of a generation */
#define LAST_NUMBER	254

static inline __s64 min(__s64 a, __s64 b)
{
	return a < b ? a : b;
}

static inline __s64 max(__s64 a, __s64 b)
{
	return a > b ? a : b;
}

struct span {
	__s64 at, len;
};

/*
 * model_device.c
 */

/* A way to the sectors: the device, and perhaps its disk or one of its partitions */
struct path {
	const char *name;
	int direct, buffered;
	/* Where it is, seen from the device; the first one is the device. */
	struct span span;
};

extern struct path paths[2];
extern int nr_paths;

/* The file behind a loop device, if the device is to be resized */
extern const char *backing;
/* The attribute of a null_blk that says which sectors cannot be written, if it has one */
extern const char *badblocks;

/* How much memory a content has: the device never gets larger. */
extern __s64 max_sectors;
#define nr_sectors	(paths[0].span.len)

/* What is done to what the driver says, to see whether it is found */
enum falsification {
	NOTHING, LOSE, ADD, IMAGE, GENERATION
};

extern enum falsification falsification;

struct statistics {
	unsigned long writes, concurrent, takes, generations, used_up, broken, lost;
	unsigned long resized, copied;
};

extern struct statistics statistics;

void begin_random(__u64 seed, __u64 round);
__u64 next_random(void);
__u64 below(__u64 n);
bool one_in(__u64 n);

void note(struct span span, const char *format, ...) __printf(2, 3);
void wrong(struct span span, const char *format, ...) __printf(2, 3) __noreturn;
void fatal(const char *what) __noreturn;

void *allocate(size_t len);
void open_paths(const char *device, const char *other);
void resize(__s64 sectors);
void set_bad(struct span span, bool bad);
void read_device(const struct path *path, void *buffer, struct span span);

void attach(void);
void detach(void);
struct blksnap_cbtinfo read_info(void);
int read_map(__u8 *map, __u32 offset, __u32 length);
void mark_dirty(struct span span);

/* The snapshot that the device is in; its image has the size that the device had. */
extern struct snapshot {
	bool exists;
	/* There is a reason for which it may be broken. */
	bool may_break;
	/* Of each sector, whether it was bad when it was written */
	bool *may_lose;
	__s64 sectors;
	int image;
} snapshot;

void create_snapshot(const char *directory, __u64 limit);
void take_snapshot(void);
void take_fails(void);
void destroy_snapshot(void);
/*
 * Whether it could be read; if not, the snapshot is broken, and may be. Leaves what is
 * lost, and may be, as it is.
 */
bool read_image(__u8 *buffer, struct span span);
/* These sectors cannot be read when they are to be saved. */
void may_lose(struct span bad);

/*
 * model_write.c
 */

enum way {
	DIRECT, VECTORED, SYNCHRONOUS, BUFFERED, ZERO_OUT, ZERO_RANGE, PUNCH, DISCARD, SECURE_ERASE,
	/* Stays in the page cache for the time being. */
	LAZY,
	NR_WAYS
};

struct write {
	enum way way;
	const struct path *path;
	struct span span;
	__u8 *data;
	bool done;
};

/* What the device must have, if no writes are under way */
extern __u8 *now;
/* The same before those that were under way at the last take, and where those were */
extern __u8 *before;
extern bool *touched;

struct span random_span(void);
void write_something(void);
void write_failing(void);
/* Several at once, or none; until they have ended something else is done. */
void begin_writes(bool some);
void end_writes(void);
void tell_writes(void (*tell)(struct span must, struct span may));
/* Whether a sector may be this while or after writes are under way */
bool is_possible(__s64 sector, const __u8 *bytes);

/*
 * model_check.c
 */

/* Which of the checks are made */
extern bool check_numbers, check_contents, check_images, check_copies;

/* The size of a block of the map */
extern __s64 block_sectors;

void model_begins(void);
void model_restarts(void);
/* All of @must was written, and at most @may, which has it in it. */
void model_written(struct span must, struct span may);
void model_in_flight(struct span must, struct span may);
/* The size has changed: there is nothing the map must say until the next snapshot. */
void model_resized(void);
bool model_is_valid(void);
void model_marked(struct span span);
__u32 model_block(void);
void check_map(void);
void check_taken(bool with_image);
void check_held(void);
void check_refused(void);

#endif
