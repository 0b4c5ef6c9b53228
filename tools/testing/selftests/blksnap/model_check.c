// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the change map must say, and what it did.
 *
 * There are four checks, each of which would find most mistakes alone:
 *
 * numbers   Of each block it is known which number it must have, or which two it may have.
 * contents  Of each sector it is known what the image must have.
 * images    Some images are kept. Where they differ from one another, the map must say so.
 * copies    Copies are kept as a backup is: what the map says has changed is read from the
 *	     image. They must be what the image is then.
 */
#include <sys/mman.h>

#include "model.h"

#define MAX_KEPT	3

bool check_numbers = true, check_contents = true, check_images = true, check_copies = true;
__s64 block_sectors;

/* What the driver said last */
static struct blksnap_cbtinfo info;

/* The numbers that a block may have in the map of the next snapshot */
static struct {
	__u8 low, high;
	/* Writes to it are under way while a snapshot is taken. */
	bool must_flight, may_flight;
} blocks[MAX_MAP];

/* What is in the map now, and how much of it and of the device there is */
static __u8 map[MAX_MAP], map_read[MAX_MAP];
static __u32 nr_blocks;
static __s64 tracked_sectors;

/* The size of the device has changed, so the generation ends. */
static bool size_has_changed;

/* All that were */
static struct blksnap_uuid *generations;
static unsigned int nr_generations;

/* Images of this generation, and the one of the snapshot there is */
static struct {
	__u8 number;
	__u8 *bytes;
} kept[MAX_KEPT];

static __u8 *image;
static bool image_is_known, is_broken;

/* Copies that are brought up to date now and then */
static struct {
	struct blksnap_uuid generation;
	__u8 number;
	__s64 sectors;
	__u8 *bytes;
} copies[] = { {}, {} };

static struct span span_of(__u32 block)
{
	__s64 at = block * block_sectors;

	return (struct span) { at, min(block_sectors, tracked_sectors - at) };
}

static size_t block_at(__u32 block)
{
	return span_of(block).at * SECTOR;
}

static size_t block_len(__u32 block)
{
	return span_of(block).len * SECTOR;
}

static bool same_id(const struct blksnap_uuid *a, const struct blksnap_uuid *b)
{
	return !memcmp(a, b, sizeof(*a));
}

/* A generation has begun: nobody may take it for another. */
static void new_generation(void)
{
	const struct blksnap_uuid *id = &info.generation_id;

	for (unsigned int i = 0; check_numbers && i < nr_generations; i++)
		if (same_id(&generations[i], id))
			wrong((struct span) {}, "numbers: the generation is an old one");
	generations = realloc(generations, (nr_generations + 1) * sizeof(*id));
	if (!generations)
		fatal("memory");
	generations[nr_generations++] = *id;
	statistics.generations++;

	tracked_sectors = nr_sectors;
	block_sectors = info.block_size / SECTOR;
	nr_blocks = info.block_count;
	size_has_changed = false;
	if (info.device_capacity != (__u64)nr_sectors * SECTOR || info.block_size < SECTOR ||
	    info.block_size & (info.block_size - 1) || nr_blocks > MAX_MAP ||
	    nr_blocks != (nr_sectors + block_sectors - 1) / block_sectors)
		wrong((struct span) {}, "numbers: %u blocks of %u bytes in %llu bytes", nr_blocks,
		      info.block_size, (unsigned long long)info.device_capacity);
	memset(blocks, 0, sizeof(blocks));
	memset(map, 0, sizeof(map));
	for (int i = 0; i < MAX_KEPT; i++)
		kept[i].number = 0;
}

void model_begins(void)
{
	size_t len = max_sectors * SECTOR;

	now = allocate(len);
	before = allocate(len);
	touched = allocate(max_sectors);
	image = allocate(len);
	for (size_t i = 0; i < MAX_KEPT; i++)
		kept[i].bytes = allocate(len);
	for (size_t i = 0; i < ARRAY_SIZE(copies); i++)
		copies[i].bytes = allocate(len);
	read_device(&paths[0], now, (struct span) { 0, nr_sectors });
	model_restarts();
}

/* The filter was attached. */
void model_restarts(void)
{
	info = read_info();
	if (info.changes_number)
		wrong((struct span) {}, "numbers: the first snapshot has been");
	new_generation();
}

/* What falsifies the map does it here. */
__u32 model_block(void)
{
	return nr_blocks / 2;
}

/* The first block of a span, and the one after the last, as far as they are tracked */
static __u32 first_of(struct span span)
{
	return span.at / block_sectors;
}

static __u32 end_of(struct span span)
{
	if (!span.len)
		return first_of(span);
	return min(nr_blocks, (span.at + span.len - 1) / block_sectors + 1);
}

void model_written(struct span must, struct span may)
{
	__u8 next = info.changes_number + 1;

	for (__u32 b = first_of(may); b < end_of(may); b++)
		blocks[b].high = next;
	for (__u32 b = first_of(must); b < end_of(must); b++)
		blocks[b].low = next;
}

void model_in_flight(struct span must, struct span may)
{
	for (__u32 b = first_of(may); b < end_of(may); b++)
		blocks[b].may_flight = true;
	for (__u32 b = first_of(must); b < end_of(must); b++)
		blocks[b].must_flight = true;
}

void model_resized(void)
{
	size_has_changed = true;
}

bool model_is_valid(void)
{
	return !size_has_changed;
}

void model_marked(struct span span)
{
	mark_dirty(span);
	model_written(span, span);
	for (__u32 b = first_of(span); b < end_of(span); b++)
		map[b] = info.changes_number;
}

/* Between snapshots the map stays what it is. Any part of it can be read. */
void check_map(void)
{
	__u32 at = below(nr_blocks), len = 1 + below(nr_blocks - at);
	int error = read_map(map_read, at, len);

	if (error)
		wrong((struct span) {}, "numbers: %u of the map from %u on: %s", len, at,
		      strerror(error));
	for (__u32 i = 0; check_numbers && i < len; i++)
		if (map_read[i] != map[at + i])
			wrong(span_of(at + i), "numbers: block %u was %u in the map, and is %u",
			      at + i, map[at + i], map_read[i]);
	error = read_map(map_read, nr_blocks - below(min(nr_blocks, 3)), 3);
	if (error != ENODATA)
		wrong((struct span) {}, "numbers: beyond the map there is %s", strerror(error));
}

/* A take that fails leaves all as it was. */
void check_refused(void)
{
	struct blksnap_cbtinfo again;

	take_fails();
	again = read_info();
	if (again.changes_number != info.changes_number ||
	    !same_id(&again.generation_id, &info.generation_id))
		wrong((struct span) {}, "numbers: a snapshot was counted that was not taken");
}

static void check_info(void)
{
	struct blksnap_cbtinfo old = info;

	info = read_info();
	if (size_has_changed || old.changes_number == LAST_NUMBER) {
		if (old.changes_number == LAST_NUMBER)
			statistics.used_up++;
		new_generation();
		old.changes_number = 0;
	} else if (!same_id(&info.generation_id, &old.generation_id)) {
		wrong((struct span) {}, "numbers: the generation has ended");
	} else if (info.block_size != old.block_size || info.block_count != old.block_count ||
		   info.device_capacity != old.device_capacity) {
		wrong((struct span) {}, "numbers: the map has another size");
	}
	if (info.changes_number != old.changes_number + 1)
		wrong((struct span) {}, "numbers: snapshot %u comes after %u", info.changes_number,
		      old.changes_number);
}

static void check_block(__u32 b)
{
	__u8 got = map[b], number = info.changes_number;

	if (got == blocks[b].low || got == blocks[b].high ||
	    (blocks[b].may_flight && got == number))
		return;
	if (got < blocks[b].low)
		wrong(span_of(b), "numbers: block %u is missing: it is %u, and must be %u", b, got,
		      blocks[b].low);
	wrong(span_of(b), "numbers: block %u is %u, but was not written to since %u", b, got,
	      blocks[b].high);
}

/* Writes were under way: what they have done is in this snapshot or comes with the next. */
static void check_flight(__u32 b)
{
	struct span span = span_of(b);
	__u8 number = info.changes_number;
	bool is_in = false;

	for (__s64 n = span.at; image_is_known && n < span.at + span.len; n++)
		if (touched[n] && memcmp(image + n * SECTOR, before + n * SECTOR, SECTOR))
			is_in = true;
	/* In a new generation there is nothing it could be missed in. */
	if (number > 1 && is_in && map[b] != number)
		wrong(span, "numbers: block %u is missing: it is %u, but changed in image %u", b,
		      map[b], number);
	if (image_is_known && memcmp(image + block_at(b), now + block_at(b), block_len(b)))
		blocks[b].low = number + 1;
	if (number > 1 && blocks[b].must_flight && map[b] != number)
		blocks[b].low = number + 1;
	blocks[b].high = number + 1;
}

static void check_content(void)
{
	for (__s64 n = 0; n < snapshot.sectors; n++)
		if (touched[n] ? !is_possible(n, image + n * SECTOR) :
		    !!memcmp(image + n * SECTOR, now + n * SECTOR, SECTOR))
			wrong((struct span) { n, 1 }, "contents: image %u has something else",
			      info.changes_number);
}

static void check_image(void)
{
	for (int i = 0; i < MAX_KEPT; i++)
		for (__u32 b = 0; kept[i].number && b < nr_blocks; b++)
			if (map[b] <= kept[i].number &&
			    memcmp(kept[i].bytes + block_at(b), image + block_at(b), block_len(b)))
				wrong(span_of(b),
				      "images: block %u is not the same in %u and %u, and is %u in the map",
				      b, kept[i].number, info.changes_number, map[b]);
}

static void keep_image(int i)
{
	memcpy(kept[i].bytes, image, tracked_sectors * SECTOR);
	kept[i].number = info.changes_number;
}

static void update_copy(int i)
{
	bool goes_on = same_id(&copies[i].generation, &info.generation_id) &&
		       copies[i].sectors == tracked_sectors;

	for (__u32 b = 0; b < nr_blocks; b++)
		if (!goes_on || map[b] > copies[i].number)
			memcpy(copies[i].bytes + block_at(b), image + block_at(b), block_len(b));
	copies[i].generation = info.generation_id;
	copies[i].number = info.changes_number;
	copies[i].sectors = tracked_sectors;
	for (__u32 b = 0; b < nr_blocks; b++)
		if (memcmp(copies[i].bytes + block_at(b), image + block_at(b), block_len(b)))
			wrong(span_of(b), "copies: block %u is old in the copy of %u", b,
			      info.changes_number);
	statistics.copied++;
}

/* A snapshot was just taken, and writes may have been under way. */
void check_taken(bool with_image)
{
	bool wanted[ARRAY_SIZE(copies)];
	int error, keep = below(MAX_KEPT);

	/* Whatever the driver does, random numbers are used up in the same way. */
	for (size_t i = 0; i < ARRAY_SIZE(copies); i++)
		wanted[i] = one_in(2 + 5 * i);

	check_info();
	tell_writes(model_in_flight);
	error = read_map(map, 0, nr_blocks);
	if (error)
		wrong((struct span) {}, "numbers: the map: %s", strerror(error));
	image_is_known = with_image && read_image(image, (struct span) { 0, snapshot.sectors });
	is_broken = with_image && !image_is_known;
	statistics.broken += is_broken;
	for (__u32 b = 0; b < nr_blocks; b++) {
		if (check_numbers)
			check_block(b);
		blocks[b].low = map[b];
		blocks[b].high = map[b];
		if (blocks[b].may_flight && check_numbers)
			check_flight(b);
		blocks[b].may_flight = false;
		blocks[b].must_flight = false;
	}
	statistics.takes++;
	if (!image_is_known)
		return;
	if (check_contents)
		check_content();
	if (check_images) {
		check_image();
		keep_image(keep);
	}
	for (size_t i = 0; check_copies && i < ARRAY_SIZE(copies); i++)
		if (wanted[i])
			update_copy(i);
}

/* The image stays what it is, as far as there is one, and but for what is lost. */
void check_held(void)
{
	struct span span = { 0, snapshot.sectors };
	__u8 *again;

	if (!image_is_known)
		return;
	again = allocate(max_sectors * SECTOR);
	memcpy(again, image, max_sectors * SECTOR);
	if (!read_image(again, span)) {
		statistics.broken += !is_broken;
		is_broken = true;
	} else if (check_contents) {
		for (__s64 n = 0; n < span.len; n++)
			if (memcmp(again + n * SECTOR, image + n * SECTOR, SECTOR))
				wrong((struct span) { n, 1 }, "contents: image %u has changed",
				      info.changes_number);
	}
	munmap(again, max_sectors * SECTOR);
}
