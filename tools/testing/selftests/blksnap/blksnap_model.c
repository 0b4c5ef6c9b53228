// SPDX-License-Identifier: GPL-2.0-only
/*
 * Does random things to a device and compares its change map, its snapshots' images and
 * copies that are kept by the map with a model. With the same seed it does the same;
 * only the order of what is done at once is not the same. Prints what it has done, or
 * what is wrong and what led there, with status 1.
 *
 * usage: blksnap_model [OPTION]... DIRECTORY DEVICE
 *
 * The storages of snapshots are made in the directory. The device, which is overwritten,
 * has not more than some MiB.
 *
 *   -s SEED    (default: 1)
 *   -n ROUNDS  (default: 100)
 *   -a NUMBER  begin with so many snapshots
 *   -o PATH    write to the device by way of its disk or its partition, too
 *   -r FILE    resize the device, which is a loop device on this file
 *   -b FILE    make writes fail: the file "badblocks" of a null_blk
 *   -k CHECK   make only this check: numbers, contents, images or copies
 *   -x WHAT    falsify what the driver says: lose a block of the map, add one, change
 *              an image, or tell the same generation always
 */
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/fs.h>

#include "model.h"

/* Enough for everything */
#define ROOM	65536

static const char *directory;

static void do_read(void)
{
	const struct path *path = &paths[below(nr_paths)];
	struct span span = random_span();
	__u8 *buffer = allocate(span.len * SECTOR);

	span.at = max(span.at, path->span.at);
	span.len = min(span.len, path->span.at + path->span.len - span.at);
	if (span.len > 0) {
		note(span, "read %s", path->name);
		read_device(path, buffer, span);
		if (memcmp(buffer, now + span.at * SECTOR, span.len * SECTOR))
			wrong(span, "the device does not have what was written");
	}
	munmap(buffer, span.len * SECTOR);
}

static void do_flush(void)
{
	const struct path *path = &paths[below(nr_paths)];

	note((struct span) {}, "flush %s", path->name);
	if (fsync(path->direct) || ioctl(path->buffered, BLKFLSBUF))
		fatal(path->name);
}

static void do_mark(void)
{
	struct span span = random_span();

	if (!model_is_valid())
		return;
	note(span, "mark");
	model_marked(span);
}

static void do_write_failing(void)
{
	if (badblocks)
		write_failing();
}

static void do_write_together(void)
{
	begin_writes(true);
	if (snapshot.exists)
		check_held();
	end_writes();
	tell_writes(model_written);
}

static void do_resize(void)
{
	__s64 old = nr_sectors, sectors = max_sectors - below(max_sectors / 2);

	if (!backing)
		return;
	if (one_in(8))
		sectors = old;
	note((struct span) {}, "resize from %lld to %lld", (long long)old, (long long)sectors);
	resize(sectors);
	if (sectors == old)
		return;
	if (sectors < old) {
		memset(now + sectors * SECTOR, 0, (old - sectors) * SECTOR);
		snapshot.may_break = true;
	}
	model_resized();
	statistics.resized++;
}

static void do_reattach(void)
{
	if (snapshot.exists)
		return;
	note((struct span) {}, "detach");
	detach();
	for (int i = below(3); i; i--)
		write_something();
	note((struct span) {}, "attach");
	attach();
	model_restarts();
}

static void do_take_that_fails(void)
{
	if (snapshot.exists || !model_is_valid())
		return;
	note((struct span) {}, "take without storage");
	check_refused();
}

static const struct {
	void (*run)(void);
	unsigned int weight;
} operations[] = {
	{ write_something, 600 },
	{ do_read, 60 },
	{ do_flush, 40 },
	{ check_map, 60 },
	{ do_mark, 30 },
	{ do_write_failing, 20 },
	{ do_write_together, 20 },
	{ do_take_that_fails, 5 },
	{ do_resize, 4 },
	{ do_reattach, 3 },
};

static void do_something(void)
{
	unsigned int all = 0, chosen;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(operations); i++)
		all += operations[i].weight;
	chosen = below(all);
	for (i = 0; chosen >= operations[i].weight; i++)
		chosen -= operations[i].weight;
	operations[i].run();
}

static void take(void)
{
	/* Now and then so little room that it overflows */
	bool small = one_in(10);

	create_snapshot(directory, small ? 128 << below(4) : ROOM);
	snapshot.may_break = small;
	begin_writes(one_in(2));
	note((struct span) {}, "take");
	take_snapshot();
	note((struct span) {}, "taken");
	end_writes();
	check_taken(true);
}

static void drop(void)
{
	begin_writes(one_in(6));
	note((struct span) {}, "destroy");
	destroy_snapshot();
	end_writes();
	tell_writes(model_written);
}

static void do_round(void)
{
	for (int i = 1 + below(6); i; i--)
		do_something();
	if (snapshot.exists)
		check_held();
	else if (!one_in(4))
		take();
	/* Many go at once, some stay for rounds. */
	if (snapshot.exists && !one_in(3))
		drop();
}

/* So that the numbers are used up soon */
static void take_many(int count)
{
	while (count--) {
		create_snapshot(directory, ROOM);
		begin_writes(false);
		take_snapshot();
		check_taken(false);
		destroy_snapshot();
	}
	note((struct span) {}, "many snapshots");
}

static __u64 to_number(const char *text)
{
	char *end;
	__u64 number = strtoull(text, &end, 0);

	if (!*text || *end) {
		fprintf(stderr, "%s: not a number\n", text);
		exit(2);
	}
	return number;
}

/* The index of a word in a list */
static size_t to_word(const char *text, const char * const *words, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (!strcmp(text, words[i]))
			return i;
	fprintf(stderr, "%s: not a word that is known\n", text);
	exit(2);
}

static void check_only(const char *text)
{
	static const char * const names[] = { "numbers", "contents", "images", "copies" };
	bool *checks[] = { &check_numbers, &check_contents, &check_images, &check_copies };
	size_t chosen = to_word(text, names, ARRAY_SIZE(names));

	for (size_t i = 0; i < ARRAY_SIZE(checks); i++)
		*checks[i] = i == chosen;
}

int main(int argc, char **argv)
{
	static const char * const falsifications[] = {
		[NOTHING] = "nothing", [LOSE] = "lose", [ADD] = "add", [IMAGE] = "image",
		[GENERATION] = "generation",
	};
	__u64 seed = 1, rounds = 100, many = 0;
	const char *other = NULL;
	int opt;

	while ((opt = getopt(argc, argv, "s:n:a:o:r:b:k:x:")) != -1) {
		switch (opt) {
		case 's':
			seed = to_number(optarg);
			break;
		case 'n':
			rounds = to_number(optarg);
			break;
		case 'a':
			many = to_number(optarg);
			break;
		case 'o':
			other = optarg;
			break;
		case 'r':
			backing = optarg;
			break;
		case 'b':
			badblocks = optarg;
			break;
		case 'k':
			check_only(optarg);
			break;
		case 'x':
			falsification = to_word(optarg, falsifications, ARRAY_SIZE(falsifications));
			break;
		default:
			exit(2);
		}
	}
	if (argc - optind != 2) {
		fprintf(stderr, "usage: blksnap_model [OPTION]... DIRECTORY DEVICE\n");
		exit(2);
	}
	directory = argv[optind];
	open_paths(argv[optind + 1], other);
	begin_random(seed, 0);
	attach();
	model_begins();
	take_many(many);
	for (__u64 round = 1; round <= rounds; round++) {
		begin_random(seed, round);
		do_round();
	}
	if (snapshot.exists)
		drop();
	detach();
	printf("rounds %llu\nwrites %lu\nconcurrent %lu\nsnapshots %lu\ngenerations %lu\n",
	       (unsigned long long)rounds, statistics.writes, statistics.concurrent,
	       statistics.takes, statistics.generations);
	printf("used_up %lu\nbroken %lu\nlost %lu\nresized %lu\ncopied %lu\n",
	       statistics.used_up, statistics.broken, statistics.lost, statistics.resized,
	       statistics.copied);
	return 0;
}
