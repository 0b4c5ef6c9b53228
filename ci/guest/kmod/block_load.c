// SPDX-License-Identifier: GPL-2.0-only
/*
 * block_load: reads and writes a block device from within the kernel
 *
 * For benchmarks: the bios come without the costs of system calls, and with simulated time at the
 * same nanosecond in each run. A process opens /dev/block_load, writes a job such as
 *
 *	dev=/dev/origin op=write bytes=4096 count=10000 depth=32
 *
 * which returns when its last I/O has ended, and reads its figures, a name and a number in a line.
 * Each open file has its own job, and they may run at the same time. A signal ends a job early.
 *
 *	dev	the device
 *	op	write, read, or mixed: read_percent of all are reads
 *	order	random	a permutation of all units
 *		sequential
 *		zipf	unit n with a probability of 1/n, scattered over the device by a permutation
 *		log	sequential, and a flush after each
 *	bytes	of an I/O
 *	unit	in bytes: what the device is divided into; an I/O is at the beginning of one
 *		(default: bytes). A larger one leaves gaps.
 *	span	in bytes, from the device's start (default: all of it)
 *	count	of I/Os, all threads together
 *	limit_ns	after which no more is begun (default: 0, none)
 *	align_ns	it begins when the clock is a multiple of that (default: at once)
 *	threads, depth	each thread has as many I/Os in flight (default: 1 and 1)
 *	batch	and submits as many with one plug (default: 1)
 *	seed
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/kernel_stat.h>
#include <linux/kthread.h>
#include <linux/log2.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/sort.h>
#include <linux/vmalloc.h>

#include "words.h"

enum op { OP_WRITE, OP_READ, OP_MIXED };
enum order { RANDOM, SEQUENTIAL, ZIPF, LOG };

#define MAX_BYTES	SZ_4M

static const char * const ops[] = { "write", "read", "mixed" };
static const char * const orders[] = { "random", "sequential", "zipf", "log" };

/* The numbers that a job has, in this order. */
struct numbers {
	u64 bytes, unit, span, count, threads, depth, batch, seed, read_percent, limit_ns, align_ns;
};

static const char * const fields[] = {
	"bytes", "unit", "span", "count", "threads", "depth", "batch", "seed", "read_percent",
	"limit_ns", "align_ns",
};

static_assert(sizeof(struct numbers) == ARRAY_SIZE(fields) * sizeof(u64));

struct job {
	struct numbers n;
	enum op op;
	enum order order;
	char *dev;

	struct block_device *bdev;
	struct folio *folio;		/* all I/Os write and read it */
	u64 units;
	u64 deadline;
	atomic64_t next;		/* of the order */
	atomic64_t ios;			/* that were begun */
	struct completion ended;	/* by each thread */
	int error;
	u32 *latency;			/* ns */
};

struct thread {
	struct job *job;
	struct llist_head ended;	/* I/Os whose bio has ended */
	wait_queue_head_t wait;
	u64 in_flight;
};

struct io {
	struct llist_node node;
	struct thread *thread;
	struct bio bio;
	struct bio_vec vec;
	u64 number, begin, end;
	bool flush;
};

struct results {
	struct mutex lock;
	char text[256];
	size_t length;
};

/* A permutation of 64 bits (splitmix64's last step, Vigna's public domain code describes it) */
static u64 mix(u64 x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

/*
 * A permutation of the numbers below n: a Feistel network of four rounds over the next even number
 * of bits, walked until the result is below n (Black and Rogaway, "Ciphers with Arbitrary
 * Finite Domains", 2002).
 */
static u64 permute(u64 x, u64 n, u64 seed)
{
	unsigned int half = DIV_ROUND_UP(n > 1 ? ilog2(n - 1) + 1 : 1, 2);
	u64 mask = BIT_ULL(half) - 1;

	do {
		u64 left = x >> half, right = x & mask;

		for (int round = 0; round < 4; round++) {
			u64 next = left ^ (mix(right ^ mix(seed + round)) & mask);

			left = right;
			right = next;
		}
		x = left << half | right;
	} while (x >= n);
	return x;
}

/*
 * A number below n that is drawn with a probability of about 1/(rank + 1): its logarithm is
 * evenly distributed. `random` has 32 bits; 2^fraction is taken as linear, 6 % off at most.
 */
static u64 zipf(u32 random, u64 n)
{
	u64 log = ((u64)ilog2(n) << 16) + ((((n << 16) >> ilog2(n)) - BIT(16)));
	u64 at = (log * random) >> 32;
	u64 rank = ((BIT_ULL(16) + (at & 0xffff)) << (at >> 16)) >> 16;

	return min(rank, n) - 1;
}

static u64 unit_of(struct job *job, u64 number)
{
	switch (job->order) {
	case RANDOM:
		return permute(number % job->units, job->units, job->n.seed);
	case ZIPF:
		return permute(zipf((u32)mix(job->n.seed + mix(number + 1)), job->units),
			       job->units, job->n.seed);
	default:
		return number % job->units;
	}
}

static enum req_op op_of(struct job *job, u64 number)
{
	if (job->op == OP_MIXED)
		return mix(~job->n.seed ^ number) % 100 < job->n.read_percent ? REQ_OP_READ : REQ_OP_WRITE;
	return job->op == OP_READ ? REQ_OP_READ : REQ_OP_WRITE;
}

static void end_io(struct bio *bio)
{
	struct io *io = container_of(bio, struct io, bio);
	struct thread *thread = io->thread;

	io->end = ktime_get_ns();
	/* The thread may take the I/O, and end with it, once it is in the list: its own lock holds it. */
	scoped_guard(spinlock_irqsave, &thread->wait.lock) {
		llist_add(&io->node, &thread->ended);
		wake_up_locked(&thread->wait);
	}
}

static void submit(struct io *io)
{
	struct job *job = io->thread->job;
	struct bio *bio = &io->bio;

	if (io->flush) {
		bio_init(bio, job->bdev, NULL, 0, REQ_OP_WRITE | REQ_PREFLUSH | REQ_SYNC);
	} else {
		bio_init(bio, job->bdev, &io->vec, 1, op_of(job, io->number) | REQ_SYNC);
		bio->bi_iter.bi_sector = (unit_of(job, io->number) * job->n.unit) >> SECTOR_SHIFT;
		bio_add_folio_nofail(bio, job->folio, job->n.bytes, 0);
	}
	bio->bi_end_io = end_io;
	submit_bio(bio);
}

/* One more I/O of the job; false if there is none left */
static bool begin(struct thread *thread)
{
	struct job *job = thread->job;
	u64 number = atomic64_fetch_inc(&job->next);
	struct io *io;

	if (number >= job->n.count || READ_ONCE(job->error) || ktime_get_ns() >= job->deadline)
		return false;
	atomic64_inc(&job->ios);
	io = kzalloc(sizeof(*io), GFP_NOIO | __GFP_NOFAIL);
	io->thread = thread;
	io->number = number;
	io->begin = ktime_get_ns();
	thread->in_flight++;
	submit(io);
	return true;
}

static void end(struct thread *thread, struct io *io)
{
	struct job *job = thread->job;

	if (io->bio.bi_status)
		WRITE_ONCE(job->error, blk_status_to_errno(io->bio.bi_status));
	bio_uninit(&io->bio);
	if (job->order == LOG && !io->flush && !io->bio.bi_status) {
		io->flush = true;
		submit(io);
		return;
	}
	job->latency[io->number] = min(io->end - io->begin, (u64)U32_MAX);
	thread->in_flight--;
	kfree(io);
}

static int load(void *data)
{
	struct job *job = data;
	struct thread thread = { .job = job };
	struct llist_node *ended;
	struct io *io, *next;
	bool more = true;

	init_llist_head(&thread.ended);
	init_waitqueue_head(&thread.wait);
	while (more || thread.in_flight) {
		if (more && job->n.depth - thread.in_flight >= job->n.batch) {
			struct blk_plug plug;

			blk_start_plug(&plug);
			for (u64 i = 0; more && i < job->n.batch; i++)
				more = begin(&thread);
			blk_finish_plug(&plug);
			continue;
		}
		spin_lock_irq(&thread.wait.lock);
		wait_event_interruptible_locked_irq(thread.wait, !llist_empty(&thread.ended));
		ended = llist_reverse_order(llist_del_all(&thread.ended));
		spin_unlock_irq(&thread.wait.lock);
		llist_for_each_entry_safe(io, next, ended, node)
			end(&thread, io);
	}
	/* The module may go as soon as this is seen. */
	kthread_complete_and_exit(&job->ended, 0);
}

static int parse(char *text, struct job *job)
{
	char *word, *value;
	int at;

	while ((at = next_word(&text, &word, &value)) > 0) {
		if (!strcmp(word, "dev")) {
			job->dev = value;
		} else if (!strcmp(word, "op")) {
			at = match_string(ops, ARRAY_SIZE(ops), value);
			if (at < 0)
				return at;
			job->op = at;
		} else if (!strcmp(word, "order")) {
			at = match_string(orders, ARRAY_SIZE(orders), value);
			if (at < 0)
				return at;
			job->order = at;
		} else if (set_number(word, value, fields, ARRAY_SIZE(fields), &job->n)) {
			return -EINVAL;
		}
	}
	return at ?: job->dev ? 0 : -EINVAL;
}

/* What was not given, and whether the job is possible on its device */
static int check(struct job *job)
{
	struct numbers *n = &job->n;
	u64 size = bdev_nr_bytes(job->bdev);

	n->unit = n->unit ?: n->bytes;
	n->span = n->span ?: size;
	if (!n->bytes || n->bytes > MAX_BYTES || n->unit < n->bytes ||
	    (n->bytes | n->unit) & (bdev_logical_block_size(job->bdev) - 1) ||
	    n->span > size || n->span < n->unit || !n->count || n->count > SZ_16M ||
	    !n->threads || n->threads > 1024 || !n->depth || n->depth > 65536 || !n->batch || n->batch > n->depth)
		return -EINVAL;
	job->units = div64_u64(n->span, n->unit);
	/* Otherwise 32 random bits, and zipf()'s 48, are too few. */
	return job->units >> 31 ? -EINVAL : 0;
}

static int by_size(const void *a, const void *b)
{
	u32 left = *(u32 *)a, right = *(u32 *)b;

	return left < right ? -1 : left > right;
}

static int run(struct job *job, struct results *results)
{
	blk_mode_t mode = BLK_OPEN_READ | (job->op == OP_READ ? 0 : BLK_OPEN_WRITE);
	struct file *file = bdev_file_open_by_path(job->dev, mode, NULL, NULL);
	u64 start, ns, sum = 0, count, started = 0;
	int err;

	if (IS_ERR(file))
		return PTR_ERR(file);
	job->bdev = file_bdev(file);
	err = check(job);
	if (err)
		goto close;
	err = -ENOMEM;
	job->latency = vzalloc(array_size(job->n.count, sizeof(*job->latency)));
	if (!job->latency)
		goto close;
	job->folio = folio_alloc(GFP_KERNEL | __GFP_ZERO, get_order(job->n.bytes));
	if (!job->folio)
		goto free;
	init_completion(&job->ended);
	if (job->n.align_ns) {
		ktime_t at = roundup_u64(ktime_get_ns() + 1, job->n.align_ns);

		set_current_state(TASK_UNINTERRUPTIBLE);
		schedule_hrtimeout_range(&at, 0, HRTIMER_MODE_ABS);
	}
	start = ktime_get_ns();
	job->deadline = job->n.limit_ns ? start + job->n.limit_ns : U64_MAX;
	for (u64 i = 0; i < job->n.threads; i++) {
		struct task_struct *task = kthread_run(load, job, "block_load/%llu", i);

		if (IS_ERR(task)) {
			WRITE_ONCE(job->error, PTR_ERR(task));
			break;
		}
		started++;
	}
	while (started) {
		/* Once the job ends, so do its threads: the second wait is a short one. */
		if (wait_for_completion_interruptible(&job->ended)) {
			WRITE_ONCE(job->error, -EINTR);
			wait_for_completion(&job->ended);
		}
		started--;
	}
	ns = ktime_get_ns() - start;
	err = job->error;
	if (err)
		goto free;
	count = atomic64_read(&job->ios);
	for (u64 i = 0; i < count; i++)
		sum += job->latency[i];
	sort(job->latency, count, sizeof(*job->latency), by_size, NULL);
	results->length = scnprintf(results->text, sizeof(results->text),
		"ios %llu\nns %llu\nmean_ns %llu\np50_ns %u\np99_ns %u\nmax_ns %u\n", count, ns,
		div64_u64(sum, count), job->latency[count / 2], job->latency[count * 99 / 100],
		job->latency[count - 1]);
free:
	if (job->folio)
		folio_put(job->folio);
	vfree(job->latency);
close:
	fput(file);
	return err;
}

static int load_open(struct inode *inode, struct file *file)
{
	struct results *results = kzalloc(sizeof(*results), GFP_KERNEL);

	if (!results)
		return -ENOMEM;
	mutex_init(&results->lock);
	file->private_data = results;
	return stream_open(inode, file);
}

static int load_release(struct inode *inode, struct file *file)
{
	kfree(file->private_data);
	return 0;
}

static ssize_t load_write(struct file *file, const char __user *from, size_t length, loff_t *pos)
{
	struct results *results = file->private_data;
	struct job *job;
	char *text;
	int err;

	if (length > PAGE_SIZE)
		return -EINVAL;
	text = memdup_user_nul(from, length);
	if (IS_ERR(text))
		return PTR_ERR(text);
	err = -ENOMEM;
	job = kzalloc(sizeof(*job), GFP_KERNEL);
	if (!job)
		goto free;
	job->n.threads = 1;
	job->n.depth = 1;
	job->n.batch = 1;
	err = parse(text, job);
	if (err)
		goto free;
	mutex_lock(&results->lock);
	results->length = 0;
	err = run(job, results);
	mutex_unlock(&results->lock);
free:
	kfree(job);
	kfree(text);
	return err ?: length;
}

/* What was read is gone: it is a stream. */
static ssize_t load_read(struct file *file, char __user *to, size_t length, loff_t *pos)
{
	struct results *results = file->private_data;

	guard(mutex)(&results->lock);
	length = min(length, results->length);
	if (copy_to_user(to, results->text, length))
		return -EFAULT;
	results->length -= length;
	memmove(results->text, results->text + length, results->length);
	return length;
}

static const struct file_operations load_fops = {
	.owner = THIS_MODULE,
	.open = load_open,
	.release = load_release,
	.read = load_read,
	.write = load_write,
};

static struct miscdevice load_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "block_load",
	.fops = &load_fops,
	.mode = 0600,
};

module_misc_device(load_device);

/* How long each processor was idle so far, in microseconds; -1 if that is not counted. */
static int get_idle(char *buffer, const struct kernel_param *kp)
{
	int cpu, length = 0;

	for_each_online_cpu(cpu)
		length += sysfs_emit_at(buffer, length, "%lld ", (s64)get_cpu_idle_time_us(cpu, NULL));
	return length + sysfs_emit_at(buffer, length, "\n");
}

static const struct kernel_param_ops idle_ops = { .get = get_idle };
module_param_cb(idle_us, &idle_ops, NULL, 0444);

MODULE_DESCRIPTION("Load on a block device from within the kernel");
MODULE_LICENSE("GPL");
