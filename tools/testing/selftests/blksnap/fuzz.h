/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of blksnap_fuzz share.
 *
 * fuzz_args.c	  random values, and arguments in memory that the kernel may not like
 * fuzz_calls.c	  the list of commands, each call, and what is known of snapshots
 * fuzz_filter.c  the commands of block devices
 * fuzz_control.c the commands of the control device
 * blksnap_fuzz.c I/O meanwhile, begin and end
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
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
#define __noreturn	__attribute__((noreturn))
#define __printf(a, b)	__attribute__((format(printf, a, b)))

#define CONTROL		"/dev/" BLKSNAP_CTL
#define MAX_DEVICES	16
#define MAX_WORKERS	16
#define MAX_SNAPSHOTS	6
#define MAX_IMAGES	8
#define MAX_ERRNO	134

/* "storage-0" and so on, for difference storages */
#define NR_FILES	8

enum command {
	ATTACH,
	DETACH,
	CBTINFO,
	CBTMAP,
	CBTDIRTY,
	SNAPSHOTADD,
	SNAPSHOTINFO,
	CBTTAKES,
	SELECT,
	OTHER_CTL,
	OTHER_FILTER,
	VERSION,
	CREATE,
	DESTROY,
	TAKE,
	COLLECT,
	WAIT_EVENT,
	CREATE_EMPTY,
	APPEND,
	LIMIT,
	LOW_SPACE,
	SPACE,
	WATCH,
	OWN,
	FREEZE,
	OTHER_CONTROL,
	NR_COMMANDS
};

struct command_info {
	const char *name;
	unsigned int weight;
	bool unknown;
	/* Besides EFAULT, which any of them may give. */
	int errors[12];
};

extern const struct command_info commands[NR_COMMANDS];

/*
 * Arguments are in a region of the address space that has nothing else: so a wrong
 * address cannot hit memory of ours that matters. Each argument has a slot of its
 * own in it, and behind the slot there is nothing.
 */
#define REGION_BYTES	0x10000000UL
#define SLOT_STRIDE	0x100000UL
#define SLOT_BYTES	0x10000UL

enum arg_slot {
	MAIN,
	OPTION,
	BUFFER,
	NR_SLOTS
};

/* What is known of the id of a snapshot */
enum known {
	UNKNOWN,
	DYING,		/* somebody else destroys it */
	KNOWN,
};

enum where {
	TIGHT,		/* ends where the slot does */
	LOOSE,		/* between canaries, aligned or not */
	READ_ONLY,	/* as TIGHT, but cannot be written to */
	CUT,		/* begins in the slot and ends behind it */
	NOWHERE,	/* no memory at all */
};

struct argument {
	enum where where;
	__u8 *at;
	size_t len;
	__u8 sent[SLOT_BYTES];
};

struct worker {
	pthread_t thread;
	__u64 random;
	unsigned long wanted;
	atomic_ulong calls;
	atomic_int command;
	__u8 *region;
	struct argument arguments[NR_SLOTS];
	/* The kernel was told to write elsewhere than to an argument, or more. */
	bool wild;
	int control;
	/* What is created there ends with it. */
	bool owner;
	unsigned long count[NR_COMMANDS][MAX_ERRNO];
	double seconds[NR_COMMANDS];
	/* What is changed while the kernel looks at it. */
	pthread_mutex_t lock;
	__u8 *scribble;
	size_t scribble_len;
};

struct device {
	const char *path;
	int fd;
	int direct;
	int buffered;
	__u64 bytes;
	unsigned int block;
};

extern struct device devices[MAX_DEVICES];
extern int nr_devices;
extern struct worker workers[MAX_WORKERS];
extern atomic_uint failures;

void __noreturn __printf(1, 2) die(const char *format, ...);
void __printf(2, 3) wrong(const struct worker *w, const char *format, ...);
double now(void);

/* fuzz_args.c */
__u64 next(__u64 *state);
__u64 below(__u64 *state, __u64 end);
bool percent(__u64 *state, unsigned int chance);
__u64 boundary(__u64 *state);
__u64 sectors(__u64 *state, __u64 end);
void mutate(__u64 *state, void *bytes, size_t len);
void make_region(struct worker *w);
__u64 harmless(struct worker *w, __u64 address);
__u64 nowhere(struct worker *w, enum arg_slot slot);
__u64 place(struct worker *w, enum arg_slot slot, const void *bytes, size_t len,
	    unsigned int badly);
void unplace(struct worker *w, enum arg_slot slot);
bool readable(const struct argument *a);
bool writable(const struct argument *a);
bool begins_writable(const struct argument *a, size_t len);
bool filled_with(const __u8 *bytes, __u8 value, size_t len);
void check_canaries(struct worker *w);
void check_unchanged(struct worker *w, enum arg_slot slot, size_t from, size_t to);
void begin_scribble(struct worker *w, enum arg_slot slot, size_t len);
void end_scribble(struct worker *w);

/* fuzz_calls.c */
enum state {
	EMPTY,
	ADDED,
	TAKEN,
};

int call(struct worker *w, enum command which, int fd, unsigned int request,
	 __u64 address, bool gone);
void any_id(struct worker *w, struct blksnap_uuid *id, enum state state);
bool may_create(void);
void created(const struct worker *w, const struct blksnap_uuid *id);
void set_state(const struct blksnap_uuid *id, enum state state);
enum known forget_id(const struct blksnap_uuid *id);
int forget_owned(const struct worker *w, struct blksnap_uuid *ids);
bool destroyed(const struct blksnap_uuid *id);
void destroy_all(int control);
void remember_image(const struct blksnap_snapshotinfo *info);
int open_image(__u64 *state, int flags);
void call_any(struct worker *w);

/* fuzz_filter.c */
void call_filter(struct worker *w, enum command which);

/* fuzz_control.c */
void call_control(struct worker *w, enum command which);

#endif /* FUZZ_H */
