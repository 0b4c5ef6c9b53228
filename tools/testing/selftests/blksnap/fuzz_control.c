// SPDX-License-Identifier: GPL-2.0-only
/*
 * The commands of the control device.
 */
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>

#include "fuzz.h"

static void call_version(struct worker *w)
{
	struct blksnap_version version;
	__u64 address;

	memset(&version, 0x5a, sizeof(version));
	address = place(w, MAIN, &version, sizeof(version), 10);
	if (call(w, VERSION, w->control, IOCTL_BLKSNAP_VERSION, address, false))
		return;
	if (!writable(&w->arguments[MAIN])) {
		wrong(w, "success with a bad address");
		return;
	}
	memcpy(&version, w->arguments[MAIN].at, sizeof(version));
	if (version.major != 3 || version.build)
		wrong(w, "version %u", version.major);
}

/* Returns how long it is, with the NUL. */
static size_t make_path(struct worker *w, char *path, bool *is_device)
{
	static const char * const others[] = {
		"no/such/file", "", "storage-0/file", "loop", "fifo", "busy", "/dev/null",
	};
	__u64 n = below(&w->random, 100);
	const char *name = NULL;

	*is_device = false;
	if (n < 20) {
		name = ".";
	} else if (n < 30) {
		name = devices[nr_devices - 1].path;
		*is_device = true;
	} else if (n < 37) {
		name = others[n - 30];
	} else if (n < 39) {
		memset(path, n == 37 ? '/' : 'x', PATH_MAX);
		path[PATH_MAX] = 0;
		return PATH_MAX + 1;
	}
	if (name)
		return snprintf(path, PATH_MAX, "%s", name) + 1;

	n = sprintf(path, "storage-%u", (unsigned int)below(&w->random, NR_FILES)) + 1;
	if (percent(&w->random, 8)) {
		mutate(&w->random, path, n);
		/* Not out of the directory. */
		for (char *c = path; *c; c++)
			if (*c == '/' || *c == '.')
				*c = 'x';
	}
	return n;
}

static void call_create(struct worker *w)
{
	struct argument *a = &w->arguments[MAIN];
	struct blksnap_snapshot_create create = {};
	char path[PATH_MAX + 1];
	bool is_device;
	__u64 address, name;
	int error;

	name = place(w, BUFFER, path, make_path(w, path, &is_device), 3);
	create.diff_storage_filename = name;
	/* Some of them are soon full. */
	create.diff_storage_limit_sect = 32 << below(&w->random, 13);
	if (is_device && below(&w->random, 2))
		create.diff_storage_limit_sect = 0;
	else if (percent(&w->random, 8))
		create.diff_storage_limit_sect = boundary(&w->random);
	memset(&create.id, 0x5a, sizeof(create.id));
	if (percent(&w->random, 3))
		create.diff_storage_filename = nowhere(w, BUFFER);
	address = place(w, MAIN, &create, sizeof(create), 4);
	begin_scribble(w, MAIN, sizeof(create.diff_storage_limit_sect));

	error = call(w, CREATE, w->control, IOCTL_BLKSNAP_SNAPSHOT_CREATE, address,
		     false);
	if (error != EFAULT)
		check_unchanged(w, MAIN, 0,
				error ? sizeof(create) : offsetof(typeof(create), id));
	check_unchanged(w, BUFFER, 0, w->arguments[BUFFER].len);
	if (error) {
		created(w, NULL);
		return;
	}
	if (!writable(a) || !readable(&w->arguments[BUFFER]) ||
	    create.diff_storage_filename != name)
		wrong(w, "success with a bad address");
	memcpy(&create, a->at, sizeof(create));
	/* Version and variant of a random UUID. */
	if (create.id.b[6] >> 4 != 4 || create.id.b[8] >> 6 != 2)
		wrong(w, "the id is no random UUID");
	created(w, &create.id);
}

static void call_create_empty(struct worker *w)
{
	struct argument *a = &w->arguments[MAIN];
	struct blksnap_snapshot_create_empty create = {};
	__u64 address;
	int error;

	memset(&create.id, 0x5a, sizeof(create.id));
	if (percent(&w->random, 8))
		create.flags = next(&w->random) | 1;
	address = place(w, MAIN, &create, sizeof(create), 4);
	error = call(w, CREATE_EMPTY, w->control, IOCTL_BLKSNAP_SNAPSHOT_CREATE_EMPTY,
		     address, false);
	check_unchanged(w, MAIN, error && error != EFAULT ? 0 : sizeof(create.id),
			sizeof(create));
	if (error) {
		created(w, NULL);
		return;
	}
	if (!writable(a) || create.flags)
		wrong(w, "success with a bad argument");
	memcpy(&create, a->at, sizeof(create));
	created(w, &create.id);
}

static void call_append(struct worker *w)
{
	const struct device *d = &devices[below(&w->random, nr_devices)];
	struct blksnap_storage_append append = {};
	struct blksnap_sectors ranges[64];
	int others[] = { -1, 0, d->fd, w->control, 1 << 20 };
	__u64 address;

	any_id(w, &append.id, TAKEN);
	append.fd = d->direct;
	if (percent(&w->random, 8))
		append.fd = others[below(&w->random, ARRAY_SIZE(others))];
	if (percent(&w->random, 4))
		append.flags = next(&w->random);
	append.count = below(&w->random, ARRAY_SIZE(ranges) + 1);
	for (__u32 i = 0; i < append.count; i++) {
		ranges[i].offset = sectors(&w->random, d->bytes >> 9) & ~7ULL;
		ranges[i].count = 8 + below(&w->random, 4) * 8;
		if (percent(&w->random, 1))
			ranges[i].count = boundary(&w->random);
	}
	append.ranges = place(w, BUFFER, ranges, append.count * sizeof(*ranges), 4);
	if (percent(&w->random, 4))
		append.count = boundary(&w->random);
	address = place(w, MAIN, &append, sizeof(append), 4);
	begin_scribble(w, MAIN, sizeof(append));
	/* The device may be an image's. */
	call(w, APPEND, w->control, IOCTL_BLKSNAP_STORAGE_APPEND, address, true);
	check_unchanged(w, MAIN, 0, sizeof(append));
	check_unchanged(w, BUFFER, 0, w->arguments[BUFFER].len);
}

static void call_freeze(struct worker *w)
{
	const struct device *d = &devices[below(&w->random, nr_devices)];
	struct blksnap_snapshot_freeze freeze = { .fd = d->fd };
	int others[] = { -1, 0, d->direct, w->control, 1 << 20 };
	__u64 address;

	any_id(w, &freeze.id, TAKEN);
	if (percent(&w->random, 8))
		freeze.fd = others[below(&w->random, ARRAY_SIZE(others))];
	if (percent(&w->random, 4))
		freeze.flags = next(&w->random);
	address = place(w, MAIN, &freeze, sizeof(freeze), 4);
	/* The device may be an image's. */
	call(w, FREEZE, w->control, IOCTL_BLKSNAP_SNAPSHOT_FREEZE, address, true);
	check_unchanged(w, MAIN, 0, sizeof(freeze));
}

/* They have the same layout. */
static void call_number(struct worker *w, enum command which, unsigned int request)
{
	struct blksnap_storage_limit limit = {};
	__u64 address;

	any_id(w, &limit.id, TAKEN);
	limit.limit_sect = 32 << below(&w->random, 13);
	if (percent(&w->random, 8))
		limit.limit_sect = boundary(&w->random);
	address = place(w, MAIN, &limit, sizeof(limit), 4);
	if (!call(w, which, w->control, request, address, false) &&
	    !readable(&w->arguments[MAIN]))
		wrong(w, "success with a bad address");
	check_unchanged(w, MAIN, 0, sizeof(limit));
}

static void call_space(struct worker *w)
{
	struct argument *a = &w->arguments[MAIN];
	struct blksnap_storage_info info;
	__u64 address;
	int error;

	memset(&info, 0x5a, sizeof(info));
	any_id(w, &info.id, TAKEN);
	address = place(w, MAIN, &info, sizeof(info), 4);
	error = call(w, SPACE, w->control, IOCTL_BLKSNAP_STORAGE_INFO, address, false);
	check_unchanged(w, MAIN, 0,
			error && error != EFAULT ? sizeof(info) : sizeof(info.id));
	if (error)
		return;
	if (!writable(a)) {
		wrong(w, "success with a bad address");
		return;
	}
	memcpy(&info, a->at, sizeof(info));
	if (info.used_nr_sect > info.total_nr_sect ||
	    info.reserved)
		wrong(w, "%llu of %llu sectors", (unsigned long long)info.used_nr_sect,
		      (unsigned long long)info.total_nr_sect);
}

static void call_watch(struct worker *w)
{
	struct pollfd poll_fd = { .fd = w->control, .events = POLLIN };
	struct blksnap_uuid id;

	any_id(w, &id, TAKEN);
	call(w, WATCH, w->control, IOCTL_BLKSNAP_SNAPSHOT_WATCH,
	     place(w, MAIN, &id, sizeof(id), 4), false);
	check_unchanged(w, MAIN, 0, sizeof(id));
	if (poll(&poll_fd, 1, below(&w->random, 4)) < 0 && errno != EINTR)
		wrong(w, "poll: %s", strerror(errno));
}

/* Snapshots that end with the file, and the end of it. */
static void call_own(struct worker *w)
{
	struct blksnap_uuid ids[MAX_SNAPSHOTS];
	int nr;

	if (!w->owner || below(&w->random, 2)) {
		/* The argument is none. */
		if (!call(w, OWN, w->control, IOCTL_BLKSNAP_SNAPSHOT_OWN,
			  boundary(&w->random), false))
			w->owner = true;
		return;
	}
	w->command = OWN;
	nr = forget_owned(w, ids);
	close(w->control);
	w->owner = false;
	w->control = open(CONTROL, O_RDONLY);
	if (w->control < 0)
		die(CONTROL ": %s", strerror(errno));
	for (int i = 0; i < nr; i++) {
		if (!ioctl(w->control, IOCTL_BLKSNAP_SNAPSHOT_DESTROY, &ids[i]))
			wrong(w, "a snapshot has outlived its owner");
		else if (errno != ENODEV)
			wrong(w, "destroy after its owner: %s", strerror(errno));
		destroyed(&ids[i]);
	}
}

static void call_take(struct worker *w)
{
	struct blksnap_uuid id;
	__u64 address;

	any_id(w, &id, ADDED);
	address = place(w, MAIN, &id, sizeof(id), 4);
	begin_scribble(w, MAIN, sizeof(id));
	/* An image can be a member, and be gone. */
	if (!call(w, TAKE, w->control, IOCTL_BLKSNAP_SNAPSHOT_TAKE, address, true)) {
		if (!readable(&w->arguments[MAIN]))
			wrong(w, "success with a bad address");
		set_state(&id, TAKEN);
	}
	check_unchanged(w, MAIN, 0, sizeof(id));
}

static void call_destroy(struct worker *w)
{
	struct argument *a = &w->arguments[MAIN];
	struct blksnap_uuid id;
	enum known known = UNKNOWN;
	bool contested = false;
	__u64 address;
	int error;

	any_id(w, &id, TAKEN);
	address = place(w, MAIN, &id, sizeof(id), 4);
	if (readable(a))
		known = forget_id(&id);
	error = call(w, DESTROY, w->control, IOCTL_BLKSNAP_SNAPSHOT_DESTROY, address,
		     false);
	if (known == KNOWN)
		contested = destroyed(&id);
	if (known == KNOWN && error && !contested)
		wrong(w, "a snapshot is not there");
	if (known == UNKNOWN && !error)
		wrong(w, "success with %s", readable(a) ? "an unknown id" : "a bad address");
	check_unchanged(w, MAIN, 0, sizeof(id));
}

static void call_collect(struct worker *w)
{
	static const __u8 zeroes[16 * sizeof(struct blksnap_uuid)];
	struct argument *a = &w->arguments[MAIN];
	struct blksnap_snapshot_collect collect = {};
	__u64 address, buffer;
	__u32 room;
	int error;

	collect.count = below(&w->random, sizeof(zeroes) / sizeof(struct blksnap_uuid) + 1);
	room = collect.count;
	buffer = place(w, BUFFER, zeroes, room * sizeof(struct blksnap_uuid), 5);
	collect.ids = below(&w->random, 4) ? buffer : 0;
	if (percent(&w->random, 5)) {
		mutate(&w->random, &collect, sizeof(collect));
		collect.ids = harmless(w, collect.ids);
	}
	if (collect.ids && (collect.ids != buffer || collect.count > room))
		w->wild = true;
	address = place(w, MAIN, &collect, sizeof(collect), 5);
	error = call(w, COLLECT, w->control, IOCTL_BLKSNAP_SNAPSHOT_COLLECT, address,
		     false);
	/* The count is returned with an error too. */
	check_unchanged(w, MAIN, error == EFAULT ? sizeof(collect) : sizeof(collect.count),
			sizeof(collect));
	if (error)
		check_unchanged(w, BUFFER, 0,
				error == EFAULT ? 0 : w->arguments[BUFFER].len);
	if (error || w->wild)
		return;
	if (!writable(a)) {
		wrong(w, "success with a bad address");
		return;
	}
	memcpy(&collect, a->at, sizeof(collect));
	if (!collect.ids)
		return;
	if (collect.count > room)
		wrong(w, "%u ids in room for %u", collect.count, room);
	else
		check_unchanged(w, BUFFER, collect.count * sizeof(struct blksnap_uuid),
				w->arguments[BUFFER].len);
}

static void check_event(struct worker *w, const struct blksnap_snapshot_event *event)
{
	size_t used = 0;

	switch (event->code) {
	case BLKSNAP_EVENT_CODE_CORRUPTED:
		used = sizeof(struct blksnap_event_corrupted);
		break;
	case BLKSNAP_EVENT_CODE_NO_SPACE:
		used = sizeof(struct blksnap_event_no_space);
		break;
	case BLKSNAP_EVENT_CODE_LOW_SPACE:
		used = sizeof(struct blksnap_event_low_space);
		break;
	default:
		wrong(w, "event %u", event->code);
		return;
	}
	if (event->time_label <= 0)
		wrong(w, "time %lld", (long long)event->time_label);
	if (!filled_with(event->data + used, 0, sizeof(event->data) - used))
		wrong(w, "there is something behind the event's data");
}

static void call_wait(struct worker *w)
{
	static const size_t returned = offsetof(struct blksnap_snapshot_event, code);
	struct argument *a = &w->arguments[MAIN];
	struct blksnap_snapshot_event event;
	__u64 address;
	int error;

	memset(&event, 0x5a, sizeof(event));
	any_id(w, &event.id, TAKEN);
	event.timeout_ms = below(&w->random, 4);
	/* A signal ends it. */
	if (percent(&w->random, 2))
		event.timeout_ms = boundary(&w->random);
	address = place(w, MAIN, &event, sizeof(event), 4);
	error = call(w, WAIT_EVENT, w->control, IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT,
		     address, false);
	check_unchanged(w, MAIN, 0, error && error != EFAULT ? sizeof(event) : returned);
	if (error)
		return;
	if (!writable(a)) {
		wrong(w, "success with a bad address");
		return;
	}
	memcpy(&event, a->at, sizeof(event));
	check_event(w, &event);
}

static void call_other_control(struct worker *w)
{
	unsigned int number = below(&w->random, 256), request;
	__u8 bytes[256];

	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = next(&w->random);
	if (below(&w->random, 2))
		number = below(&w->random, 8) + below(&w->random, 2) * 32;
	request = _IOC(below(&w->random, 4), BLKSNAP, number,
		       boundary(&w->random) & _IOC_SIZEMASK);
	if (below(&w->random, 8) == 0)
		request = next(&w->random);
	switch (request) {
	case IOCTL_BLKSNAP_VERSION:
	case IOCTL_BLKSNAP_SNAPSHOT_CREATE:
	case IOCTL_BLKSNAP_SNAPSHOT_DESTROY:
	case IOCTL_BLKSNAP_SNAPSHOT_TAKE:
	case IOCTL_BLKSNAP_SNAPSHOT_COLLECT:
	case IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT:
	case IOCTL_BLKSNAP_SNAPSHOT_CREATE_EMPTY:
	case IOCTL_BLKSNAP_STORAGE_APPEND:
	case IOCTL_BLKSNAP_STORAGE_LIMIT:
	case IOCTL_BLKSNAP_STORAGE_LOW_SPACE:
	case IOCTL_BLKSNAP_STORAGE_INFO:
	case IOCTL_BLKSNAP_SNAPSHOT_WATCH:
	case IOCTL_BLKSNAP_SNAPSHOT_OWN:
	case IOCTL_BLKSNAP_SNAPSHOT_FREEZE:
		return;
	}
	/* What any file has. */
	if (_IOC_TYPE(request) != BLKSNAP)
		return;
	call(w, OTHER_CONTROL, w->control, request,
	     place(w, MAIN, bytes, sizeof(bytes), 10), false);
	check_unchanged(w, MAIN, 0, sizeof(bytes));
}

void call_control(struct worker *w, enum command which)
{
	switch (which) {
	case VERSION:
		call_version(w);
		break;
	case CREATE:
		call_create(w);
		break;
	case DESTROY:
		call_destroy(w);
		break;
	case TAKE:
		call_take(w);
		break;
	case COLLECT:
		call_collect(w);
		break;
	case WAIT_EVENT:
		call_wait(w);
		break;
	case CREATE_EMPTY:
		call_create_empty(w);
		break;
	case APPEND:
		call_append(w);
		break;
	case LIMIT:
		call_number(w, which, IOCTL_BLKSNAP_STORAGE_LIMIT);
		break;
	case LOW_SPACE:
		call_number(w, which, IOCTL_BLKSNAP_STORAGE_LOW_SPACE);
		break;
	case SPACE:
		call_space(w);
		break;
	case WATCH:
		call_watch(w);
		break;
	case OWN:
		call_own(w);
		break;
	case FREEZE:
		call_freeze(w);
		break;
	default:
		call_other_control(w);
	}
}
