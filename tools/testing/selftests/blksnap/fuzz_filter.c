// SPDX-License-Identifier: GPL-2.0-only
/*
 * The commands of block devices.
 */
#include <ctype.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include "fuzz.h"

static void set_name(struct worker *w, __u8 *name)
{
	static const char * const others[] = {
		"", "blksna", "blksnap2", "BLKSNAP", "nosuchfilter", "blksnap\n",
	};

	memset(name, 0, BLKFILTER_NAME_LENGTH);
	memcpy(name, BLKSNAP_FILTER_NAME, sizeof(BLKSNAP_FILTER_NAME));
	if (!percent(&w->random, 3))
		return;
	if (below(&w->random, 2))
		strncpy((char *)name, others[below(&w->random, ARRAY_SIZE(others))],
			BLKFILTER_NAME_LENGTH);
	else
		mutate(&w->random, name, BLKFILTER_NAME_LENGTH);
}

static void call_attach(struct worker *w, int fd, bool gone)
{
	struct blkfilter_attach attach = {};
	__u8 option[16] = {};
	__u64 address;

	set_name(w, attach.name);
	if (percent(&w->random, 5)) {
		attach.opt = place(w, OPTION, option, sizeof(option), 20);
		attach.optlen = below(&w->random, 20);
	}
	if (percent(&w->random, 5))
		mutate(&w->random, &attach, sizeof(attach));
	address = place(w, MAIN, &attach, sizeof(attach), 4);
	begin_scribble(w, MAIN, BLKFILTER_NAME_LENGTH);
	if (!call(w, ATTACH, fd, BLKFILTER_ATTACH, address, gone) &&
	    !readable(&w->arguments[MAIN]))
		wrong(w, "success with a bad address");
	check_unchanged(w, MAIN, 0, sizeof(attach));
}

static void call_detach(struct worker *w, int fd, bool gone)
{
	struct blkfilter_detach detach;
	__u64 address;

	set_name(w, detach.name);
	address = place(w, MAIN, &detach, sizeof(detach), 4);
	begin_scribble(w, MAIN, sizeof(detach));
	if (!call(w, DETACH, fd, BLKFILTER_DETACH, address, gone) &&
	    !readable(&w->arguments[MAIN]))
		wrong(w, "success with a bad address");
	check_unchanged(w, MAIN, 0, sizeof(detach));
}

static size_t make_cbtmap(struct worker *w, __u64 bytes, struct blksnap_cbtmap *map)
{
	static const __u8 zeroes[SLOT_BYTES / 2];
	/* What it is if the module's parameters are not set. */
	__u64 end = (bytes + 0xffff) >> 16;
	__u64 address;

	map->offset = below(&w->random, end + 1);
	map->length = below(&w->random, end - map->offset + 1);
	if (percent(&w->random, 15)) {
		map->offset = sectors(&w->random, end);
		map->length = sectors(&w->random, end);
	}
	address = place(w, BUFFER, zeroes,
			map->length < sizeof(zeroes) ? map->length : sizeof(zeroes), 5);
	map->buffer = address;
	if (percent(&w->random, 5)) {
		mutate(&w->random, map, sizeof(*map));
		map->buffer = harmless(w, map->buffer);
	}
	if (map->length > w->arguments[BUFFER].len || map->buffer != address)
		w->wild = true;
	return sizeof(*map);
}

static size_t make_cbtdirty(struct worker *w, __u64 bytes, struct blksnap_cbtdirty *dirty)
{
	struct blksnap_sectors ranges[8];
	__u64 end = bytes >> 9;

	memset(dirty, 0, sizeof(*dirty));
	dirty->count = below(&w->random, ARRAY_SIZE(ranges) + 1);
	for (__u32 i = 0; i < dirty->count; i++) {
		ranges[i].offset = below(&w->random, end);
		ranges[i].count = below(&w->random, end - ranges[i].offset + 1);
		if (percent(&w->random, 10))
			mutate(&w->random, &ranges[i], sizeof(ranges[i]));
		if (percent(&w->random, 5))
			ranges[i].offset = sectors(&w->random, end);
		if (percent(&w->random, 5))
			ranges[i].count = sectors(&w->random, end);
	}
	dirty->dirty_sectors = place(w, BUFFER, ranges, dirty->count * sizeof(*ranges), 5);
	if (percent(&w->random, 5)) {
		mutate(&w->random, dirty, sizeof(*dirty));
		dirty->dirty_sectors = harmless(w, dirty->dirty_sectors);
	}
	return sizeof(*dirty);
}

static size_t make_cbttakes(struct worker *w, struct blksnap_cbttakes *takes)
{
	static const __u8 zeroes[SLOT_BYTES / 2];
	size_t len;

	memset(takes, 0, sizeof(*takes));
	takes->size = percent(&w->random, 80) ? sizeof(struct blksnap_uuid) :
						below(&w->random, 128);
	takes->count = percent(&w->random, 80) ? 254 : below(&w->random, 255);
	len = (size_t)takes->count * takes->size;
	if (percent(&w->random, 90))
		takes->takes = place(w, BUFFER, zeroes, len, 5);
	if (percent(&w->random, 5)) {
		__u64 address = takes->takes;

		mutate(&w->random, takes, sizeof(*takes));
		takes->takes = harmless(w, takes->takes);
		if (takes->takes != address || (size_t)takes->count * takes->size != len)
			w->wild = true;
	}
	return sizeof(*takes);
}

/* The id of a snapshot that the device had; or of another, or nothing. */
static void any_take(struct worker *w, int fd, struct blksnap_uuid *id)
{
	struct blksnap_uuid ids[254];
	struct blksnap_cbttakes takes = {
		.count = ARRAY_SIZE(ids),
		.size = sizeof(*ids),
		.takes = (uintptr_t)ids,
	};
	struct blkfilter_ctl ctl = {
		.name = BLKSNAP_FILTER_NAME,
		.cmd = BLKSNAP_FILTER_CBTTAKES,
		.opt = (uintptr_t)&takes,
		.optlen = sizeof(takes),
	};

	any_id(w, id, EMPTY);
	if (percent(&w->random, 80) && !ioctl(fd, BLKFILTER_CTL, &ctl) && takes.count)
		*id = ids[below(&w->random, takes.count)];
}

static void check_cbttakes(struct worker *w, const __u8 *bytes,
			   const struct blksnap_cbttakes *sent)
{
	static const struct blksnap_uuid none;
	struct blksnap_cbttakes takes;

	memcpy(&takes, bytes, sizeof(takes));
	if (takes.size != sent->size || takes.takes != sent->takes || takes.flags)
		wrong(w, "what is not returned was changed");
	if (takes.count > 254)
		wrong(w, "%u takes", takes.count);
	if (!memcmp(&takes.generation_id, &none, sizeof(none)))
		wrong(w, "no generation");
	if (!takes.takes)
		return;
	if (takes.count > sent->count)
		wrong(w, "%u takes where there is room for %u", takes.count, sent->count);
	else if (takes.count &&
		 !begins_writable(&w->arguments[BUFFER], takes.count * takes.size))
		wrong(w, "success with a bad buffer");
}

static void check_cbtinfo(struct worker *w, const __u8 *bytes, __u32 len)
{
	struct blksnap_cbtinfo info = {};
	__u64 blocks;

	memcpy(&info, bytes, len);
	if (info.block_size < 512 || info.block_size & (info.block_size - 1)) {
		wrong(w, "block size %u", info.block_size);
		return;
	}
	blocks = (info.device_capacity + info.block_size - 1) / info.block_size;
	if (blocks != info.block_count)
		wrong(w, "%u blocks of %u bytes on %llu", info.block_count,
		      info.block_size, (unsigned long long)info.device_capacity);
	for (__u32 i = offsetof(struct blksnap_cbtinfo, changes_number) + 1; i < len; i++)
		if (bytes[i])
			wrong(w, "padding is not zero");
}

static void check_info(struct worker *w, const __u8 *bytes, int device)
{
	struct blksnap_snapshotinfo info;
	size_t len;

	memcpy(&info, bytes, sizeof(info));
	if (info.error_code > 0 || info.error_code <= -MAX_ERRNO)
		wrong(w, "error code %d", info.error_code);
	len = strnlen((char *)info.image, sizeof(info.image));
	if (!filled_with(info.image + len, 0, sizeof(info.image) - len) ||
	    len == sizeof(info.image)) {
		wrong(w, "the image's name does not end");
		return;
	}
	if (!len)
		return;
	if (strncmp((char *)info.image, "blksnap-image", 13) || !isdigit(info.image[13])) {
		wrong(w, "image %s", info.image);
		return;
	}
	if (device >= 0)
		remember_image(&info);
}

static enum command ctl_command(__u32 cmd)
{
	switch (cmd) {
	case BLKSNAP_FILTER_CBTINFO:
		return CBTINFO;
	case BLKSNAP_FILTER_CBTMAP:
		return CBTMAP;
	case BLKSNAP_FILTER_CBTDIRTY:
		return CBTDIRTY;
	case BLKSNAP_FILTER_SNAPSHOTADD:
		return SNAPSHOTADD;
	case BLKSNAP_FILTER_SNAPSHOTINFO:
		return SNAPSHOTINFO;
	case BLKSNAP_FILTER_CBTTAKES:
		return CBTTAKES;
	case BLKSNAP_FILTER_SELECT:
		return SELECT;
	default:
		return OTHER_CTL;
	}
}

static void call_ctl(struct worker *w, enum command which, int fd, int device,
		     __u64 bytes)
{
	struct argument *option = &w->arguments[OPTION];
	union {
		__u8 bytes[256];
		struct blksnap_cbtmap map;
		struct blksnap_cbtdirty dirty;
		struct blksnap_cbttakes takes;
		struct blksnap_select select;
		struct blksnap_uuid id;
	} arg;
	struct blkfilter_ctl ctl = {};
	size_t len = 0;
	bool writes;
	__u64 address;
	int error;

	memset(&arg, 0x5a, sizeof(arg));
	switch (which) {
	case CBTINFO:
		ctl.cmd = BLKSNAP_FILTER_CBTINFO;
		len = sizeof(struct blksnap_cbtinfo);
		break;
	case CBTMAP:
		ctl.cmd = BLKSNAP_FILTER_CBTMAP;
		len = make_cbtmap(w, bytes, &arg.map);
		break;
	case CBTDIRTY:
		ctl.cmd = BLKSNAP_FILTER_CBTDIRTY;
		len = make_cbtdirty(w, bytes, &arg.dirty);
		break;
	case SNAPSHOTADD:
		ctl.cmd = BLKSNAP_FILTER_SNAPSHOTADD;
		len = sizeof(arg.id);
		any_id(w, &arg.id, EMPTY);
		break;
	case SNAPSHOTINFO:
		ctl.cmd = BLKSNAP_FILTER_SNAPSHOTINFO;
		len = sizeof(struct blksnap_snapshotinfo);
		break;
	case CBTTAKES:
		ctl.cmd = BLKSNAP_FILTER_CBTTAKES;
		len = make_cbttakes(w, &arg.takes);
		break;
	case SELECT:
		ctl.cmd = BLKSNAP_FILTER_SELECT;
		len = sizeof(arg.select) + (percent(&w->random, 20) ? 8 : 0);
		memset(&arg, percent(&w->random, 10) ? 0x5a : 0, len);
		any_take(w, fd, &arg.select.take_id);
		break;
	default:
		/* The first numbers from 32 on are kept for extensions. */
		ctl.cmd = 5 + below(&w->random, 27);
		if (below(&w->random, 2))
			ctl.cmd = 64 + boundary(&w->random) / 2;
		len = below(&w->random, sizeof(arg));
	}

	set_name(w, ctl.name);
	address = place(w, OPTION, arg.bytes, len, 4);
	ctl.opt = address;
	ctl.optlen = len;
	if (percent(&w->random, 4))
		ctl.optlen = below(&w->random, 2) ? boundary(&w->random) :
						   below(&w->random, 64);
	if (percent(&w->random, 3)) {
		mutate(&w->random, &ctl, sizeof(ctl));
		ctl.opt = harmless(w, ctl.opt);
	}
	which = ctl_command(ctl.cmd);
	writes = which == CBTINFO || which == SNAPSHOTINFO || which == CBTTAKES;
	if (ctl.opt != address || (writes && ctl.optlen > len))
		w->wild = true;
	address = place(w, MAIN, &ctl, sizeof(ctl), 3);
	if (which == SNAPSHOTADD && !w->wild)
		begin_scribble(w, OPTION, len);

	error = call(w, which, fd, BLKFILTER_CTL, address, device < 0);
	check_unchanged(w, MAIN, 0, sizeof(ctl));
	/* What could be written before there was an error was written. */
	if (!writes || (error && error != EFAULT && error != ENODATA))
		check_unchanged(w, OPTION, 0, len);
	if (error || w->wild)
		return;
	if (!readable(&w->arguments[MAIN]) || !readable(option) ||
	    (writes && !writable(option)))
		wrong(w, "success with a bad address");
	else if (which == SNAPSHOTADD)
		set_state(&arg.id, ADDED);
	else if (which == CBTINFO)
		check_cbtinfo(w, option->at, ctl.optlen);
	else if (which == CBTTAKES)
		check_cbttakes(w, option->at, &arg.takes);
	else if (which == SNAPSHOTINFO)
		check_info(w, option->at, device);
	else if (which == CBTMAP && arg.map.length &&
		 !begins_writable(&w->arguments[BUFFER], arg.map.length))
		wrong(w, "success with a bad buffer");
}

/* A size or direction that is not that of the command. */
static void call_other_filter(struct worker *w, int fd)
{
	unsigned int number = 142 + below(&w->random, 3), size, request;
	__u8 bytes[256];

	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = next(&w->random);
	size = below(&w->random, 2) ? below(&w->random, 64) : boundary(&w->random);
	request = _IOC(below(&w->random, 4), 0x12, number, size & _IOC_SIZEMASK);
	switch (request) {
	case BLKFILTER_ATTACH:
	case BLKFILTER_DETACH:
	case BLKFILTER_CTL:
	case 0xc0c0128e:	/* BLKTRACESETUP2 */
	case 0xc010128e:	/* BLKREPORTZONEV2 */
		return;
	}
	call(w, OTHER_FILTER, fd, request, place(w, MAIN, bytes, sizeof(bytes), 10),
	     false);
	check_unchanged(w, MAIN, 0, sizeof(bytes));
}

void call_filter(struct worker *w, enum command which)
{
	int device = below(&w->random, nr_devices), fd = devices[device].fd;
	__u64 bytes = devices[device].bytes;
	bool image = percent(&w->random, 10);

	if (image) {
		fd = open_image(&w->random, O_RDONLY);
		image = fd >= 0;
		if (!image)
			fd = devices[device].fd;
	}
	switch (which) {
	case ATTACH:
		call_attach(w, fd, image);
		break;
	case DETACH:
		call_detach(w, fd, image);
		break;
	case OTHER_FILTER:
		call_other_filter(w, fd);
		break;
	default:
		call_ctl(w, which, fd, image ? -1 : device, bytes);
	}
	if (image)
		close(fd);
}
