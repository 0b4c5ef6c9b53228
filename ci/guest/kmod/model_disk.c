// SPDX-License-Identifier: GPL-2.0-only
/*
 * model_disk: a disk without memory that takes as long as a disk would
 *
 * For benchmarks. Nothing is stored: what is written is dropped, and what is read is left as it
 * is in the reader's pages, but for the first MiB of each half, which reads as zeroes: that is where
 * partition tables and headers are looked for. So no time goes into copying data, and what is
 * measured is the I/O that a snapshot causes, not the processor that moves it.
 *
 *	echo "name=origin sectors=134217728 read_ns=80000 write_ns=15000" >/sys/module/model_disk/parameters/add
 *	echo origin >/sys/module/model_disk/parameters/remove
 *
 * The time that an I/O takes depends on nothing but the I/Os so far and when they came. With the
 * simulated time of user-mode Linux it is the same to the nanosecond in each run.
 *
 * A disk without rotation serves `channels` I/Os at a time (0: all that come). An I/O waits for a
 * channel, takes read_ns or write_ns, and then its data go over a link that all share, one I/O after
 * the other, of read_bw or write_bw bytes a second. With read_iops or write_iops one starts at most
 * so often.
 *
 * A disk with rotation_ns has one arm. It takes the command (read_ns or write_ns), moves
 * (seek_min_ns to the next track to seek_max_ns over all of them, with the square root of the
 * distance), waits for its sector and transfers what passes by: so its tracks have as much as
 * read_bw carries in one rotation. Of what is queued it takes the I/O that it reaches first, where
 * 1/32 of the time that one has waited counts in its favour (aged shortest access time first: D. M.
 * Jacobson and J. Wilkes, "Disk scheduling algorithms based on rotational position", 1991).
 */
#include <linux/blk-mq.h>
#include <linux/highmem.h>
#include <linux/hrtimer.h>
#include <linux/math.h>
#include <linux/module.h>
#include <linux/rbtree.h>

#include "words.h"

#define AGING			32
#define ZEROED_SECTORS		(SZ_1M >> SECTOR_SHIFT)

/* As they are given, in this order. */
struct model {
	u64 sectors;
	u64 depth;
	u64 channels;
	u64 read_ns, write_ns, flush_ns;
	u64 read_bw, write_bw;
	u64 read_iops, write_iops;
	u64 rotation_ns, seek_min_ns, seek_max_ns;
};

static const char * const fields[] = {
	"sectors", "depth", "channels", "read_ns", "write_ns", "flush_ns", "read_bw", "write_bw",
	"read_iops", "write_iops", "rotation_ns", "seek_min_ns", "seek_max_ns",
};

static_assert(sizeof(struct model) == ARRAY_SIZE(fields) * sizeof(u64));

struct model_disk {
	struct list_head list;
	struct model model;
	struct blk_mq_tag_set tags;
	struct gendisk *disk;

	spinlock_t lock;		/* all below */
	struct hrtimer timer;
	struct rb_root_cached running;	/* by end, then in the order they came */
	struct list_head waiting;	/* for a channel or the arm */
	u64 busy;			/* channels, or the arm */
	u64 link_free, start_free;	/* from when on */
	sector_t head;			/* where the arm is when it stops */
	u64 head_free;			/* when that is or was */
};

struct io {
	struct rb_node node;
	struct list_head waiting;
	u64 came, end;
	bool on_link;			/* or without data, or of an arm */
};

static LIST_HEAD(disks);
static DEFINE_MUTEX(disks_lock);

static u64 now_ns(void)
{
	return ktime_get_ns();
}

static bool is_write(struct request *rq)
{
	return op_is_write(req_op(rq));
}

static u64 transfer_ns(const struct model *m, struct request *rq)
{
	u64 bw = is_write(rq) ? m->write_bw : m->read_bw;

	return bw ? div64_u64((u64)blk_rq_bytes(rq) * NSEC_PER_SEC, bw) : 0;
}

static u64 base_ns(const struct model *m, struct request *rq)
{
	return is_write(rq) ? m->write_ns : m->read_ns;
}

static u64 track_sectors(const struct model *m)
{
	return div64_u64(mul_u64_u64_div_u64(m->read_bw, m->rotation_ns, NSEC_PER_SEC), SECTOR_SIZE);
}

static u64 seek_ns(const struct model *m, sector_t from, sector_t to)
{
	u64 distance = from < to ? to - from : from - to;

	if (distance < track_sectors(m))
		return 0;
	/* The root of the share of all tracks, in 1/1024 */
	return m->seek_min_ns + (((m->seek_max_ns - m->seek_min_ns) *
		int_sqrt64(div64_u64(distance << 20, m->sectors))) >> 10);
}

/* Until when the arm, free from `now` on, has done with an I/O */
static u64 arm_end(struct model_disk *d, struct request *rq, u64 now)
{
	const struct model *m = &d->model;
	struct io *io = blk_mq_rq_to_pdu(rq);
	u64 track = track_sectors(m), at, angle, wanted;

	/* What follows and came while the arm was busy passes by without a gap. */
	if (blk_rq_pos(rq) == d->head && io->came < d->head_free && now == d->head_free)
		return now + transfer_ns(m, rq);
	at = now + base_ns(m, rq) + seek_ns(m, d->head, blk_rq_pos(rq));
	div64_u64_rem(at, m->rotation_ns, &angle);
	div64_u64_rem(blk_rq_pos(rq), track, &wanted);
	wanted = div64_u64(wanted * m->rotation_ns, track);
	return at + (wanted >= angle ? 0 : m->rotation_ns) + wanted - angle + transfer_ns(m, rq);
}

static void run(struct model_disk *d, struct io *io)
{
	struct rb_node **link = &d->running.rb_root.rb_node, *parent = NULL;
	bool first = true;

	while (*link) {
		parent = *link;
		if (io->end < rb_entry(parent, struct io, node)->end) {
			link = &parent->rb_left;
		} else {
			link = &parent->rb_right;
			first = false;
		}
	}
	rb_link_node(&io->node, parent, link);
	rb_insert_color_cached(&io->node, &d->running, first);
}

/* What the arm does next: see above. */
static struct io *nearest(struct model_disk *d, u64 now)
{
	s64 cost, least = S64_MAX;
	struct io *io, *best = NULL;

	list_for_each_entry(io, &d->waiting, waiting) {
		io->end = arm_end(d, blk_mq_rq_from_pdu(io), now);
		cost = io->end - now - (now - io->came) / AGING;
		if (cost < least) {
			least = cost;
			best = io;
		}
	}
	return best;
}

static void begin_on_arm(struct model_disk *d, struct io *io)
{
	struct request *rq = blk_mq_rq_from_pdu(io);

	d->head = blk_rq_pos(rq) + blk_rq_sectors(rq);
	d->head_free = io->end;
	io->on_link = true;
}

static void begin_on_channel(struct model_disk *d, struct io *io, u64 now)
{
	const struct model *m = &d->model;
	struct request *rq = blk_mq_rq_from_pdu(io);
	u64 iops = is_write(rq) ? m->write_iops : m->read_iops;

	if (iops) {
		now = max(now, d->start_free);
		d->start_free = now + div64_u64(NSEC_PER_SEC, iops);
	}
	io->end = now + base_ns(m, rq);
	io->on_link = !transfer_ns(m, rq);
}

/* Begins what waits, as far as there is a channel, or the arm is free. */
static void begin(struct model_disk *d, u64 now)
{
	u64 channels = d->model.rotation_ns ? 1 : d->model.channels;
	struct io *io;

	while (!list_empty(&d->waiting) && (!channels || d->busy < channels)) {
		if (d->model.rotation_ns) {
			io = nearest(d, now);
			begin_on_arm(d, io);
		} else {
			io = list_first_entry(&d->waiting, struct io, waiting);
			begin_on_channel(d, io, now);
		}
		list_del(&io->waiting);
		d->busy++;
		run(d, io);
	}
}

/* What is at its end goes on; true if it is done. */
static bool step(struct model_disk *d, struct io *io)
{
	struct request *rq = blk_mq_rq_from_pdu(io);
	u64 now = io->end;

	if (req_op(rq) == REQ_OP_FLUSH)
		return true;
	if (!io->on_link) {
		io->on_link = true;
		io->end = max(now, d->link_free) + transfer_ns(&d->model, rq);
		d->link_free = io->end;
		run(d, io);
		return false;
	}
	d->busy--;
	begin(d, now);
	return true;
}

static void start_timer(struct model_disk *d)
{
	struct rb_node *first = rb_first_cached(&d->running);

	if (first)
		hrtimer_start(&d->timer, ns_to_ktime(rb_entry(first, struct io, node)->end), HRTIMER_MODE_ABS_HARD);
}

static enum hrtimer_restart expired(struct hrtimer *timer)
{
	struct model_disk *d = container_of(timer, struct model_disk, timer);
	struct rb_node *node;
	LIST_HEAD(done);
	struct io *io, *next;
	unsigned long flags;
	u64 now = now_ns();

	spin_lock_irqsave(&d->lock, flags);
	while ((node = rb_first_cached(&d->running))) {
		io = rb_entry(node, struct io, node);
		if (io->end > now)
			break;
		rb_erase_cached(node, &d->running);
		if (step(d, io))
			list_add_tail(&io->waiting, &done);
	}
	start_timer(d);
	spin_unlock_irqrestore(&d->lock, flags);
	list_for_each_entry_safe(io, next, &done, waiting)
		blk_mq_end_request(blk_mq_rq_from_pdu(io), BLK_STS_OK);
	return HRTIMER_NORESTART;
}

static void zero_headers(struct model_disk *d, struct request *rq)
{
	struct req_iterator iter;
	struct bio_vec bv;
	u64 at;

	div64_u64_rem(blk_rq_pos(rq), d->model.sectors / 2, &at);
	if (req_op(rq) != REQ_OP_READ || at >= ZEROED_SECTORS)
		return;
	rq_for_each_segment(bv, rq, iter)
		memzero_bvec(&bv);
}

static blk_status_t queue_rq(struct blk_mq_hw_ctx *hctx, const struct blk_mq_queue_data *bd)
{
	struct request *rq = bd->rq;
	struct model_disk *d = hctx->queue->queuedata;
	struct io *io = blk_mq_rq_to_pdu(rq);
	unsigned long flags;

	blk_mq_start_request(rq);
	zero_headers(d, rq);
	spin_lock_irqsave(&d->lock, flags);
	io->came = now_ns();
	if (req_op(rq) == REQ_OP_FLUSH) {
		io->end = io->came + d->model.flush_ns;
		run(d, io);
	} else {
		list_add_tail(&io->waiting, &d->waiting);
		begin(d, io->came);
	}
	start_timer(d);
	spin_unlock_irqrestore(&d->lock, flags);
	return BLK_STS_OK;
}

static const struct blk_mq_ops mq_ops = {
	.queue_rq = queue_rq,
};

static const struct block_device_operations fops = {
	.owner = THIS_MODULE,
};

static int parse(char *text, struct model *m, char **name)
{
	char *word, *value;
	int ret;

	while ((ret = next_word(&text, &word, &value)) > 0) {
		if (!strcmp(word, "name"))
			*name = value;
		else if (set_number(word, value, fields, ARRAY_SIZE(fields), m))
			return -EINVAL;
	}
	if (ret)
		return ret;
	if (!*name || strlen(*name) >= DISK_NAME_LEN || m->sectors < 2 ||
	    !m->depth || m->depth > BLK_MQ_MAX_DEPTH || m->seek_max_ns < m->seek_min_ns ||
	    (m->rotation_ns && (!m->read_bw || m->read_bw != m->write_bw || !track_sectors(m))))
		return -EINVAL;
	return 0;
}

static int add_disk_of(const char *name, const struct model *m)
{
	struct queue_limits lim = {
		.max_hw_sectors = SZ_1M >> SECTOR_SHIFT,
		.max_segments = 256,
		.physical_block_size = SZ_4K,
		.features = (m->flush_ns ? BLK_FEAT_WRITE_CACHE : 0) | (m->rotation_ns ? BLK_FEAT_ROTATIONAL : 0),
	};
	struct model_disk *d = kzalloc(sizeof(*d), GFP_KERNEL);
	int err;

	if (!d)
		return -ENOMEM;
	d->model = *m;
	spin_lock_init(&d->lock);
	INIT_LIST_HEAD(&d->waiting);
	d->running = RB_ROOT_CACHED;
	hrtimer_setup(&d->timer, expired, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
	d->tags.ops = &mq_ops;
	d->tags.nr_hw_queues = 1;
	d->tags.queue_depth = m->depth;
	d->tags.numa_node = NUMA_NO_NODE;
	d->tags.cmd_size = sizeof(struct io);
	d->tags.flags = BLK_MQ_F_NO_SCHED_BY_DEFAULT;
	err = blk_mq_alloc_tag_set(&d->tags);
	if (err)
		goto free;
	d->disk = blk_mq_alloc_disk(&d->tags, &lim, d);
	if (IS_ERR(d->disk)) {
		err = PTR_ERR(d->disk);
		goto tags;
	}
	d->disk->fops = &fops;
	strscpy(d->disk->disk_name, name, DISK_NAME_LEN);
	set_capacity(d->disk, m->sectors);
	err = add_disk(d->disk);
	if (err)
		goto disk;
	list_add(&d->list, &disks);
	return 0;
disk:
	put_disk(d->disk);
tags:
	blk_mq_free_tag_set(&d->tags);
free:
	kfree(d);
	return err;
}

static void remove_disk(struct model_disk *d)
{
	list_del(&d->list);
	del_gendisk(d->disk);
	put_disk(d->disk);
	hrtimer_cancel(&d->timer);
	blk_mq_free_tag_set(&d->tags);
	kfree(d);
}

static int add_set(const char *value, const struct kernel_param *kp)
{
	char *text = kstrdup(value, GFP_KERNEL), *name = NULL;
	struct model m = { .depth = 128 };
	int err;

	if (!text)
		return -ENOMEM;
	err = parse(text, &m, &name);
	if (!err) {
		mutex_lock(&disks_lock);
		err = add_disk_of(name, &m);
		mutex_unlock(&disks_lock);
	}
	kfree(text);
	return err;
}

static int remove_set(const char *value, const struct kernel_param *kp)
{
	struct model_disk *d, *next;
	int err = -ENODEV;

	mutex_lock(&disks_lock);
	list_for_each_entry_safe(d, next, &disks, list) {
		if (!sysfs_streq(value, d->disk->disk_name))
			continue;
		err = disk_openers(d->disk) ? -EBUSY : 0;
		if (!err)
			remove_disk(d);
		break;
	}
	mutex_unlock(&disks_lock);
	return err;
}

static const struct kernel_param_ops add_ops = { .set = add_set };
static const struct kernel_param_ops remove_ops = { .set = remove_set };

module_param_cb(add, &add_ops, NULL, 0200);
module_param_cb(remove, &remove_ops, NULL, 0200);

static void __exit model_disk_exit(void)
{
	struct model_disk *d, *next;

	list_for_each_entry_safe(d, next, &disks, list)
		remove_disk(d);
}

module_exit(model_disk_exit);
MODULE_DESCRIPTION("Disk without memory that takes as long as a disk would");
MODULE_LICENSE("GPL");
