// SPDX-License-Identifier: GPL-2.0-only
/*
 * Calls all ioctls of block device filters and of blksnap with right, nearly right
 * and wrong arguments, in several threads at once, while the devices are written and
 * the images read.
 *
 * A good part of the calls is right, so that they get deep. What may not happen is an
 * error that is not one of the command's, memory that is written where it was not
 * asked for, an answer that makes no sense, or an image that changes. At the end there
 * are statistics.
 *
 * A seed stands for the same calls of each thread; how the threads meet is up to the
 * machine.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#include <linux/fs.h>

#include "fuzz.h"

#define NR_IO		2

/* So many calls of a command are a long run: one of them must have succeeded. */
#define LONG_RUN	300

/* After so many seconds in one call a thread is reported. */
#define SLOW		120

struct device devices[MAX_DEVICES];
int nr_devices;
struct worker workers[MAX_WORKERS];
atomic_uint failures;

static int nr_workers = 8;
static atomic_int nr_running;
static atomic_bool stop, stop_io;

void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(2);
}

void wrong(const struct worker *w, const char *format, ...)
{
	va_list args;

	if (atomic_fetch_add(&failures, 1) >= 20)
		return;
	flockfile(stdout);
	printf("WRONG: ");
	if (w)
		printf("thread %td, call %lu, %s: ", w - workers, w->calls,
		       commands[w->command].name);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
	funlockfile(stdout);
}

double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void *work(void *arg)
{
	struct worker *w = arg;

	while (!stop && w->calls < w->wanted)
		call_any(w);
	atomic_fetch_sub(&nr_running, 1);
	return NULL;
}

/*
 * What goes on at the same time
 */

static void on_signal(int signal)
{
	(void)signal;
}

/* Signals, and arguments that change while they are in use. */
static void *disturb(void *arg)
{
	__u64 state = *(__u64 *)arg;

	while (!stop_io) {
		struct worker *w = &workers[below(&state, nr_workers)];

		pthread_mutex_lock(&w->lock);
		if (w->scribble)
			mutate(&state, w->scribble, w->scribble_len);
		pthread_mutex_unlock(&w->lock);
		if (percent(&state, 5))
			pthread_kill(w->thread, SIGUSR1);
		usleep(below(&state, 500));
	}
	return NULL;
}

/* The image does not change, as long as it can be read. */
static void read_image(__u64 *state, char *one, char *two)
{
	int fd = open_image(state, O_RDONLY | O_DIRECT);
	off_t end;

	if (fd < 0)
		return;
	end = lseek(fd, 0, SEEK_END);
	for (int i = 0; i < 4 && end > 0; i++) {
		off_t at = below(state, end / 4096 + 1) * 4096;
		size_t len = (below(state, 16) + 1) * 4096;
		ssize_t first = pread(fd, one, len, at), second;

		usleep(below(state, 2000));
		second = pread(fd, two, len, at);
		if (first > 0 && first == second && memcmp(one, two, first))
			wrong(NULL, "an image has changed at byte %lld", (long long)at);
	}
	close(fd);
}

/* Reads images, and writes to all devices but the last, which may hold old data. */
static void *do_io(void *arg)
{
	const size_t most = 1 << 18;
	__u64 state = *(__u64 *)arg, range[2];
	int count = nr_devices > 1 ? nr_devices - 1 : 1;
	char *one, *two;

	if (posix_memalign((void **)&one, 4096, most) ||
	    posix_memalign((void **)&two, 4096, most))
		die("no memory");
	while (!stop_io) {
		struct device *d = &devices[below(&state, count)];
		size_t len = (below(&state, 16) + 1) << (9 + below(&state, 6));
		/* A partition table at the start stays. */
		off_t at = (1 << 20) + below(&state, d->bytes - (1 << 20));

		at -= at % d->block;
		len -= len % d->block;
		range[0] = at;
		range[1] = len;
		memset(two, next(&state), len);
		switch (below(&state, 16)) {
		case 0:
			ioctl(d->direct, BLKDISCARD, range);
			break;
		case 1:
			ioctl(d->direct, BLKZEROOUT, range);
			break;
		case 2:
			fsync(d->buffered);
			break;
		case 3 ... 7:
			read_image(&state, one, two);
			break;
		case 8 ... 10:
			if (pwrite(d->buffered, two, len, at) < 0 && errno != ENOSPC)
				wrong(NULL, "%s: writing: %s", d->path, strerror(errno));
			break;
		default:
			if (len && pwrite(d->direct, two, len, at) < 0 && errno != ENOSPC)
				wrong(NULL, "%s: writing: %s", d->path, strerror(errno));
		}
		usleep(below(&state, 3000));
	}
	free(one);
	free(two);
	return NULL;
}

/*
 * From begin to end
 */

static __u32 count_snapshots(int control)
{
	struct blksnap_snapshot_collect collect = {};

	if (ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_COLLECT, &collect))
		die("collect: %s", strerror(errno));
	return collect.count;
}

static void open_devices(int argc, char **argv)
{
	struct blkfilter_attach attach = { .name = BLKSNAP_FILTER_NAME };

	if (!argc || argc > MAX_DEVICES)
		die("not 1 to %d devices", MAX_DEVICES);
	for (nr_devices = 0; nr_devices < argc; nr_devices++) {
		struct device *d = &devices[nr_devices];

		d->path = argv[nr_devices];
		d->fd = open(d->path, O_RDONLY | O_DIRECT);
		d->direct = open(d->path, O_RDWR | O_DIRECT);
		d->buffered = open(d->path, O_RDWR);
		if (d->fd < 0 || d->direct < 0 || d->buffered < 0)
			die("%s: %s", d->path, strerror(errno));
		if (ioctl(d->fd, BLKGETSIZE64, &d->bytes) ||
		    ioctl(d->fd, BLKSSZGET, &d->block))
			die("%s: not a block device", d->path);
		if (d->bytes <= 2 << 20)
			die("%s: too small", d->path);
		if (ioctl(d->fd, BLKFILTER_ATTACH, &attach))
			die("%s: attach: %s", d->path, strerror(errno));
	}
}

static void make_files(void)
{
	char name[16];
	int fd;

	for (int i = 0; i < NR_FILES; i++) {
		snprintf(name, sizeof(name), "storage-%d", i);
		fd = open(name, O_CREAT | O_WRONLY, 0600);
		if (fd < 0 || close(fd))
			die("%s: %s", name, strerror(errno));
	}
	if (mkfifo("fifo", 0600) || symlink("loop", "loop"))
		die("fifo, loop: %s", strerror(errno));
	/* Stays open. */
	if (open("busy", O_CREAT | O_WRONLY, 0600) < 0)
		die("busy: %s", strerror(errno));
}

static void remove_files(void)
{
	char name[16];

	for (int i = 0; i < NR_FILES; i++) {
		snprintf(name, sizeof(name), "storage-%d", i);
		unlink(name);
	}
	unlink("fifo");
	unlink("loop");
	unlink("busy");
}

static void clean_up(int control)
{
	struct blkfilter_detach detach = { .name = BLKSNAP_FILTER_NAME };

	destroy_all(control);
	for (int i = 0; i < nr_devices; i++)
		if (ioctl(devices[i].fd, BLKFILTER_DETACH, &detach) && errno != ENOENT)
			wrong(NULL, "%s: detach at the end: %s", devices[i].path,
			      strerror(errno));
	remove_files();
}

/* Waits for the workers; says so when one does not return from a call. */
static void watch(unsigned long seconds)
{
	unsigned long seen[MAX_WORKERS] = {};
	double begin = now(), since[MAX_WORKERS];

	for (int i = 0; i < nr_workers; i++)
		since[i] = begin;
	while (nr_running) {
		usleep(100000);
		if (seconds && now() - begin >= seconds)
			stop = true;
		for (int i = 0; i < nr_workers; i++) {
			struct worker *w = &workers[i];

			if (w->calls != seen[i] || w->calls >= w->wanted) {
				seen[i] = w->calls;
				since[i] = now();
			} else if (now() - since[i] >= SLOW) {
				printf("thread %d: %s for %d s\n", i,
				       commands[w->command].name, SLOW);
				fflush(stdout);
				since[i] = now();
			}
		}
	}
}

static void print_statistics(void)
{
	unsigned long sums[NR_COMMANDS][MAX_ERRNO] = {}, calls, all = 0, good = 0;
	double seconds[NR_COMMANDS] = {};

	for (int i = 0; i < nr_workers; i++) {
		for (int c = 0; c < NR_COMMANDS; c++) {
			for (int e = 0; e < MAX_ERRNO; e++)
				sums[c][e] += workers[i].count[c][e];
			seconds[c] += workers[i].seconds[c];
		}
	}

	printf("%-20s %9s %9s %9s  errors\n", "command", "calls", "success",
	       "seconds");
	for (int c = 0; c < NR_COMMANDS; c++) {
		calls = 0;
		for (int e = 0; e < MAX_ERRNO; e++)
			calls += sums[c][e];
		all += calls;
		good += sums[c][0];
		printf("%-20s %9lu %9lu %9.1f ", commands[c].name, calls, sums[c][0],
		       seconds[c]);
		for (int e = 1; e < MAX_ERRNO; e++)
			if (sums[c][e])
				printf(" %s %lu", strerrorname_np(e), sums[c][e]);
		putchar('\n');
		if (calls >= LONG_RUN && !sums[c][0] && !commands[c].unknown)
			wrong(NULL, "%s has never succeeded", commands[c].name);
	}
	printf("%-20s %9lu %9lu\n", "all", all, good);
}

static unsigned long number(const char *text)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(text, &end, 0);
	if (errno || !*text || *end)
		die("%s: not numeric", text);
	return value;
}

static void __noreturn usage(void)
{
	die("usage: blksnap_fuzz [-n CALLS] [-s SEED] [-t SECONDS] [-j THREADS] DIRECTORY\n"
	    "                    DEVICE...\n"
	    "  Files are made in the directory, and all devices are overwritten. The last\n"
	    "  device also is a difference storage; it has no sectors in common with others.");
}

int main(int argc, char **argv)
{
	const struct sigaction action = { .sa_handler = on_signal };
	unsigned long calls = 20000, seconds = 0;
	pthread_t io[NR_IO + 1];
	__u64 seed = 0, seeds[NR_IO + 1];
	int opt, control;
	__u32 before;

	while ((opt = getopt(argc, argv, "n:s:t:j:")) != -1) {
		switch (opt) {
		case 'n':
			calls = number(optarg);
			break;
		case 's':
			seed = number(optarg);
			break;
		case 't':
			seconds = number(optarg);
			break;
		case 'j':
			nr_workers = number(optarg);
			break;
		default:
			usage();
		}
	}
	if (argc - optind < 2 || nr_workers < 1 || nr_workers > MAX_WORKERS)
		usage();
	if (!seed && getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		die("getrandom");
	printf("seed %llu\n", (unsigned long long)seed);
	fflush(stdout);

	control = open(CONTROL, O_RDONLY);
	if (control < 0)
		die(CONTROL ": %s", strerror(errno));
	before = count_snapshots(control);
	open_devices(argc - optind - 1, argv + optind + 1);
	if (chdir(argv[optind]))
		die("%s: %s", argv[optind], strerror(errno));
	make_files();

	/* Without SA_RESTART. */
	sigaction(SIGUSR1, &action, NULL);
	for (int i = 0; i < nr_workers; i++) {
		struct worker *w = &workers[i];

		w->random = next(&seed);
		w->wanted = calls / nr_workers + (i < (int)(calls % nr_workers));
		w->control = open(CONTROL, O_RDONLY);
		pthread_mutex_init(&w->lock, NULL);
		make_region(w);
		for (int s = 0; s < NR_SLOTS; s++)
			unplace(w, s);
	}
	nr_running = nr_workers;
	for (int i = 0; i < nr_workers; i++)
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			die("no thread");
	for (int i = 0; i <= NR_IO; i++) {
		seeds[i] = next(&seed);
		if (pthread_create(&io[i], NULL, i ? do_io : disturb, &seeds[i]))
			die("no thread");
	}

	watch(seconds);
	/* They are not joined as long as they may get signals. */
	stop_io = true;
	for (int i = 0; i <= NR_IO; i++)
		pthread_join(io[i], NULL);
	for (int i = 0; i < nr_workers; i++)
		pthread_join(workers[i].thread, NULL);

	clean_up(control);
	if (count_snapshots(control) != before)
		wrong(NULL, "a snapshot is left");
	print_statistics();
	return failures ? 1 : 0;
}
