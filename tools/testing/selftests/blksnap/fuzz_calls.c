// SPDX-License-Identifier: GPL-2.0-only
/*
 * The list of commands, each call, and what is known of snapshots and images.
 */
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "fuzz.h"

const struct command_info commands[NR_COMMANDS] = {
	[ATTACH] = { "attach", 6, false, { EALREADY, ENOENT, EINVAL, EOPNOTSUPP, ENOMEM } },
	[DETACH] = { "detach", 3, false, { EBUSY, ENOENT, EINVAL } },
	[CBTINFO] = { "cbtinfo", 14, false, { ENOENT, EINVAL } },
	[CBTMAP] = { "cbtmap", 18, false, { ENOENT, EINVAL, ENODATA, EAGAIN } },
	[CBTDIRTY] = { "cbtdirty", 16, false, { ENOENT, EINVAL, ERANGE, EINTR } },
	[SNAPSHOTADD] = { "snapshotadd", 14, false,
		{ ENOENT, EINVAL, ESRCH, EALREADY, EBUSY, EDEADLK, EINTR, ENODEV, ENOMEM } },
	[SNAPSHOTINFO] = { "snapshotinfo", 12, false, { ENOENT, EINVAL, ESRCH } },
	[CBTTAKES] = { "cbttakes", 8, false,
		{ ENOENT, EINVAL, E2BIG, ENODATA, ENOMEM } },
	[SELECT] = { "select", 6, false,
		{ ENOENT, EINVAL, E2BIG, ESRCH, ESTALE, EBUSY } },
	[OTHER_CTL] = { "other ctl", 3, true, { ENOENT, EINVAL, ENOTTY } },
	/* The device's driver may have its say. */
	[OTHER_FILTER] = { "other filter ioctl", 3, true, { ENOTTY, EINVAL } },
	[VERSION] = { "version", 6, false, {} },
	[CREATE] = { "create", 3, false,
		{ EINVAL, ENOENT, ENOTDIR, ENAMETOOLONG, ELOOP, ETXTBSY, EBUSY, ENOMEM } },
	[DESTROY] = { "destroy", 1, false, { ENODEV } },
	[TAKE] = { "take", 3, false,
		{ ESRCH, EALREADY, ENODATA, ENOSPC, EBUSY, EINTR, ENOMEM } },
	[COLLECT] = { "collect", 8, false, { ENODATA } },
	[WAIT_EVENT] = { "wait event", 8, false, { ENOENT, EINTR, ESRCH } },
	[CREATE_EMPTY] = { "create empty", 1, false, { EINVAL, ENOMEM } },
	[APPEND] = { "append", 10, false,
		{ EINVAL, ESRCH, EBADF, ENOTBLK, EBUSY, EDEADLK, E2BIG, EINTR, EROFS, ENOMEM } },
	[LIMIT] = { "limit", 4, false, { EINVAL, ESRCH } },
	[LOW_SPACE] = { "low space", 4, false, { EINVAL, ESRCH } },
	[SPACE] = { "space", 4, false, { ESRCH } },
	[WATCH] = { "watch", 2, false, { ESRCH, EBUSY } },
	[OWN] = { "own", 1, false, {} },
	[FREEZE] = { "freeze", 3, false,
		{ EINVAL, ESRCH, EBADF, ENOTBLK, EBUSY, EALREADY, EINTR, ENOMEM } },
	[OTHER_CONTROL] = { "other control ioctl", 3, true, { ENOTTY } },
};

/* What the threads know of each other's doing. */
static pthread_mutex_t known_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
	struct blksnap_uuid id;
	enum state state;
	/* Whose file it ends with, or NULL */
	const struct worker *owner;
} snapshots[MAX_SNAPSHOTS];
static int nr_snapshots, nr_creating;
static struct blksnap_uuid old_id;
/* What is being destroyed. Nobody takes its place before it is gone. */
static struct {
	struct blksnap_uuid id;
	bool contested;
	const struct worker *owner;
} dying[MAX_WORKERS];
static int nr_dying;
static char images[MAX_IMAGES][BLKSNAP_IMAGE_NAME_LEN];
static unsigned int next_image;

static bool expected(enum command which, int error)
{
	if (error == EFAULT && commands[which].errors[0] != ENOTTY)
		return true;
	for (size_t i = 0; i < ARRAY_SIZE(commands[which].errors); i++)
		if (commands[which].errors[i] == error)
			return error;
	return false;
}

/* @gone: the error is allowed of what is not there any more. Returns the error. */
int call(struct worker *w, enum command which, int fd, unsigned int request,
	 __u64 address, bool gone)
{
	double begin = now();
	int error;

	w->command = which;
	error = syscall(SYS_ioctl, fd, request, address) < 0 ? errno : 0;
	w->seconds[which] += now() - begin;
	atomic_fetch_add(&w->calls, 1);
	if (error >= MAX_ERRNO) {
		wrong(w, "error %d", error);
		error = 0;
	}
	w->count[which][error]++;
	if (!error && commands[which].unknown)
		wrong(w, "request %#x has succeeded", request);
	if (error && !expected(which, error) &&
	    !(gone && (error == ENODEV || error == ENXIO || error == EIO)))
		wrong(w, "%s", strerrorname_np(error));
	check_canaries(w);
	return error;
}

/* Mostly that of a snapshot in this state, or in an earlier one. */
void any_id(struct worker *w, struct blksnap_uuid *id, enum state state)
{
	__u64 n = next(&w->random), tries = 4;

	pthread_mutex_lock(&known_lock);
	*id = old_id;
	for (; nr_snapshots && n % 16 && tries; n /= 2, tries--) {
		int i = n / 16 % nr_snapshots;

		*id = snapshots[i].id;
		if (snapshots[i].state == state)
			break;
	}
	pthread_mutex_unlock(&known_lock);
	if (percent(&w->random, 8))
		mutate(&w->random, id, sizeof(*id));
}

bool may_create(void)
{
	bool may;

	pthread_mutex_lock(&known_lock);
	may = nr_snapshots + nr_creating + nr_dying < MAX_SNAPSHOTS;
	nr_creating += may;
	pthread_mutex_unlock(&known_lock);
	return may;
}

/* An attempt that may_create() has allowed is over, with or without success. */
void created(const struct worker *w, const struct blksnap_uuid *id)
{
	pthread_mutex_lock(&known_lock);
	nr_creating--;
	if (id) {
		snapshots[nr_snapshots].id = *id;
		snapshots[nr_snapshots].owner = w->owner ? w : NULL;
		snapshots[nr_snapshots++].state = EMPTY;
	}
	pthread_mutex_unlock(&known_lock);
}

static int find_id(const struct blksnap_uuid *id)
{
	for (int i = 0; i < nr_snapshots; i++)
		if (!memcmp(&snapshots[i].id, id, sizeof(*id)))
			return i;
	return -1;
}

static int find_dying(const struct blksnap_uuid *id)
{
	for (int i = 0; i < nr_dying; i++)
		if (!memcmp(&dying[i].id, id, sizeof(*id)))
			return i;
	return -1;
}

void set_state(const struct blksnap_uuid *id, enum state state)
{
	int i;

	pthread_mutex_lock(&known_lock);
	i = find_id(id);
	if (i >= 0 && snapshots[i].state < state)
		snapshots[i].state = state;
	pthread_mutex_unlock(&known_lock);
}

static void forget(int i)
{
	old_id = snapshots[i].id;
	dying[nr_dying].id = snapshots[i].id;
	dying[nr_dying].owner = snapshots[i].owner;
	dying[nr_dying++].contested = false;
	snapshots[i] = snapshots[--nr_snapshots];
}

/* A snapshot is about to be destroyed. */
enum known forget_id(const struct blksnap_uuid *id)
{
	enum known known = UNKNOWN;
	int i;

	pthread_mutex_lock(&known_lock);
	i = find_dying(id);
	if (i >= 0) {
		dying[i].contested = true;
		known = DYING;
	}
	i = find_id(id);
	if (i >= 0) {
		known = KNOWN;
		forget(i);
	}
	pthread_mutex_unlock(&known_lock);
	return known;
}

/*
 * The file of @w is about to be closed. Returns how many of the snapshots that end with
 * it nobody else destroys, and which.
 */
int forget_owned(const struct worker *w, struct blksnap_uuid *ids)
{
	int nr = 0;

	pthread_mutex_lock(&known_lock);
	for (int i = 0; i < nr_dying; i++)
		if (dying[i].owner == w)
			dying[i].contested = true;
	for (int i = nr_snapshots; i--;) {
		if (snapshots[i].owner != w)
			continue;
		ids[nr++] = snapshots[i].id;
		forget(i);
	}
	pthread_mutex_unlock(&known_lock);
	return nr;
}

/* It was destroyed. Says whether somebody else may have done so. */
bool destroyed(const struct blksnap_uuid *id)
{
	bool contested = false;
	int i;

	pthread_mutex_lock(&known_lock);
	i = find_dying(id);
	if (i >= 0) {
		contested = dying[i].contested;
		dying[i] = dying[--nr_dying];
	}
	pthread_mutex_unlock(&known_lock);
	return contested;
}

void destroy_all(int control)
{
	for (int i = 0; i < nr_snapshots; i++)
		if (ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_DESTROY, &snapshots[i].id))
			wrong(NULL, "destroy at the end: %s", strerror(errno));
}

void remember_image(const struct blksnap_snapshotinfo *info)
{
	pthread_mutex_lock(&known_lock);
	memcpy(images[next_image++ % MAX_IMAGES], info->image, sizeof(info->image));
	pthread_mutex_unlock(&known_lock);
}

/* Opens an image, or the first partition of it. */
int open_image(__u64 *state, int flags)
{
	char path[BLKSNAP_IMAGE_NAME_LEN + 16];
	__u64 n = next(state);

	pthread_mutex_lock(&known_lock);
	snprintf(path, sizeof(path), "/dev/%s%s", images[n % MAX_IMAGES],
		 n / MAX_IMAGES % 4 ? "" : "p1");
	pthread_mutex_unlock(&known_lock);
	return strncmp(path, "/dev/blksnap-image", 18) ? -1 : open(path, flags);
}

void call_any(struct worker *w)
{
	unsigned int sum = 0, n;
	int which;

	for (which = 0; which < NR_COMMANDS; which++)
		sum += commands[which].weight;
	n = below(&w->random, sum);
	for (which = 0; n >= commands[which].weight; which++)
		n -= commands[which].weight;
	if ((which == CREATE || which == CREATE_EMPTY) && !may_create())
		which = DESTROY;

	if (which < VERSION)
		call_filter(w, which);
	else
		call_control(w, which);
	end_scribble(w);
	for (int i = 0; i < NR_SLOTS; i++)
		unplace(w, i);
	w->wild = false;
}
