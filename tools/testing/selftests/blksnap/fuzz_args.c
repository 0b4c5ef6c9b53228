// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random values, and arguments in memory that the kernel may not like.
 */
#include <sys/mman.h>

#include "fuzz.h"

#define CANARY_BYTES	64
#define CANARY		0xc5

/* splitmix64 */
__u64 next(__u64 *state)
{
	__u64 z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

__u64 below(__u64 *state, __u64 end)
{
	return end ? next(state) % end : 0;
}

bool percent(__u64 *state, unsigned int chance)
{
	return below(state, 100) < chance;
}

__u64 boundary(__u64 *state)
{
	static const __u64 values[] = {
		0, 1, 7, 8, 511, 512, 4095, 4096, SHRT_MAX, 1 << 16, INT_MAX,
		1ULL << 31, UINT_MAX, 1ULL << 32, 1ULL << 53, 1ULL << 54,
		1ULL << 55, 1ULL << 60, LLONG_MAX, 1ULL << 63, ULLONG_MAX,
	};

	return values[below(state, ARRAY_SIZE(values))] + below(state, 3) - 1;
}

/* A sector or number of sectors of the device, inside, near its end or far away. */
__u64 sectors(__u64 *state, __u64 end)
{
	switch (below(state, 8)) {
	case 0:
		return boundary(state);
	case 1:
		return end + below(state, 5) - 2;
	default:
		return below(state, end + 1);
	}
}

/* Makes bytes that were right a bit wrong, or entirely. */
void mutate(__u64 *state, void *bytes, size_t len)
{
	__u8 *p = bytes;
	__u64 value;
	size_t size;

	switch (below(state, 8)) {
	case 0:
		for (size_t i = 0; i < len; i++)
			p[i] = next(state);
		return;
	case 1:
	case 2:
	case 3:
		size = 1ULL << below(state, 4);
		if (size > len)
			return;
		value = boundary(state);
		memcpy(p + below(state, len / size) * size, &value, size);
		return;
	default:
		for (__u64 n = below(state, 4) + 1; n && len; n--)
			p[below(state, len)] ^= 1 << below(state, 8);
	}
}

void make_region(struct worker *w)
{
	__u8 *memory = mmap(NULL, 2 * REGION_BYTES, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		die("no address space");
	/* Aligned, so that a flipped bit of an address mostly stays in it. */
	w->region = (__u8 *)(((uintptr_t)memory + REGION_BYTES - 1) & -REGION_BYTES);
	for (int i = 0; i < NR_SLOTS; i++)
		if (mprotect(w->region + (i + 1) * SLOT_STRIDE, SLOT_BYTES,
			     PROT_READ | PROT_WRITE))
			die("no memory");
}

static __u8 *slot_of(struct worker *w, enum arg_slot slot)
{
	return w->region + (slot + 1) * SLOT_STRIDE;
}

/* Keeps a wrong address away from what it must not hit. */
__u64 harmless(struct worker *w, __u64 address)
{
	__u64 region = (uintptr_t)w->region;

	if (address - region < REGION_BYTES || address < 4096 || address >> 63)
		return address;
	return address | 1ULL << 63;
}

__u64 nowhere(struct worker *w, enum arg_slot slot)
{
	static const __u64 addresses[] = {
		0, 1, 8, 4095, 1ULL << 63, 0xffff800000000000, 0xffff888000000000,
		0xffffc90000000000, 0xffffffff81000000, -4096ULL, -16ULL, -1ULL,
	};
	__u64 i = below(&w->random, ARRAY_SIZE(addresses) + 4);

	if (i < ARRAY_SIZE(addresses))
		return addresses[i];
	return (uintptr_t)slot_of(w, slot) + SLOT_BYTES + below(&w->random, 64);
}

/* Puts an argument into its slot and returns the address for the kernel. */
__u64 place(struct worker *w, enum arg_slot slot, const void *bytes, size_t len,
	    unsigned int badly)
{
	struct argument *a = &w->arguments[slot];
	__u8 *start = slot_of(w, slot), *end = start + SLOT_BYTES;
	size_t there = len;

	a->len = len;
	a->where = below(&w->random, 3) ? TIGHT : LOOSE;
	if (len && percent(&w->random, badly))
		a->where = READ_ONLY + below(&w->random, 3);

	switch (a->where) {
	case LOOSE:
		a->at = start + CANARY_BYTES + below(&w->random, 2 * CANARY_BYTES);
		if (below(&w->random, 2))
			a->at -= (uintptr_t)a->at % 8;
		break;
	case CUT:
		there = below(&w->random, len);
		a->at = end - there;
		break;
	case NOWHERE:
		return nowhere(w, slot);
	default:
		a->at = end - len;
		break;
	}
	memset(a->at - CANARY_BYTES, CANARY, CANARY_BYTES);
	if (a->where == LOOSE)
		memset(a->at + len, CANARY, CANARY_BYTES);
	memcpy(a->at, bytes, there);
	memcpy(a->sent, bytes, len);
	if (a->where == READ_ONLY && mprotect(start, SLOT_BYTES, PROT_READ))
		die("mprotect");
	return (uintptr_t)a->at;
}

void unplace(struct worker *w, enum arg_slot slot)
{
	if (w->arguments[slot].where == READ_ONLY &&
	    mprotect(slot_of(w, slot), SLOT_BYTES, PROT_READ | PROT_WRITE))
		die("mprotect");
	w->arguments[slot].where = NOWHERE;
	w->arguments[slot].len = 0;
}

/* Whether the kernel can read all of it. */
bool readable(const struct argument *a)
{
	return a->where != CUT && a->where != NOWHERE;
}

bool writable(const struct argument *a)
{
	return readable(a) && a->where != READ_ONLY;
}

/* Whether it can write the first bytes of it. */
bool begins_writable(const struct argument *a, size_t len)
{
	return writable(a) || (a->where == CUT && len <= -(uintptr_t)a->at % SLOT_BYTES);
}

bool filled_with(const __u8 *bytes, __u8 value, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (bytes[i] != value)
			return false;
	return true;
}

/* Nothing was written around an argument. */
void check_canaries(struct worker *w)
{
	for (int i = 0; i < NR_SLOTS; i++) {
		struct argument *a = &w->arguments[i];

		if (a->where == NOWHERE || w->wild)
			continue;
		if (!filled_with(a->at - CANARY_BYTES, CANARY, CANARY_BYTES))
			wrong(w, "memory before argument %d was written", i);
		if (a->where == LOOSE &&
		    !filled_with(a->at + a->len, CANARY, CANARY_BYTES))
			wrong(w, "memory behind argument %d was written", i);
	}
}

void check_unchanged(struct worker *w, enum arg_slot slot, size_t from, size_t to)
{
	struct argument *a = &w->arguments[slot];

	if (!readable(a) || w->wild || from >= to)
		return;
	if (a->at < w->scribble + w->scribble_len && w->scribble < a->at + a->len)
		return;
	if (memcmp(a->at + from, a->sent + from, to - from))
		wrong(w, "argument %d was changed from byte %zu to %zu", slot, from, to);
}

void begin_scribble(struct worker *w, enum arg_slot slot, size_t len)
{
	struct argument *a = &w->arguments[slot];

	if (!writable(a) || !percent(&w->random, 5))
		return;
	pthread_mutex_lock(&w->lock);
	w->scribble = a->at;
	w->scribble_len = len;
	pthread_mutex_unlock(&w->lock);
}

void end_scribble(struct worker *w)
{
	pthread_mutex_lock(&w->lock);
	w->scribble = NULL;
	w->scribble_len = 0;
	pthread_mutex_unlock(&w->lock);
}
