// SPDX-License-Identifier: GPL-2.0-only
/*
 * Block device filters: drivers that attach to a block device at run time and
 * see its bios before the device does.
 *
 * gendisk::filters has the filters of a disk and of its partitions. It is
 * written under the disk's open_mutex and read under RCU. blk_filter_enabled
 * counts all filters.
 */
#include <linux/blk-filter.h>
#include <linux/blk-mq.h>
#include <linux/capability.h>
#include <linux/mempool.h>
#include <linux/module.h>
#include <linux/part_stat.h>
#include <linux/rculist.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/wait_bit.h>
#include <linux/workqueue.h>
#include "blk.h"
#include "blk-filter.h"

/*
 * Deferred, since changing a key takes the lock of CPU hotplug, which cannot
 * be had where a disk is removed: its queue is frozen there.
 */
DEFINE_STATIC_KEY_DEFERRED_FALSE(blk_filter_enabled, HZ);

struct blk_filter_driver {
	struct list_head list;
	const struct blk_filter_ops *ops;
};

static LIST_HEAD(blk_filter_drivers);
static DEFINE_MUTEX(blk_filter_drivers_lock);

#define BLK_FILTER_MIN_WRITES	64

/* How long to wait for I/O that is on its way, in jiffies. */
#define BLK_FILTER_TIMEOUT	(30 * HZ)

/*
 * Freezing the queue of a bio-based device does not wait for the bios that its
 * ->submit_bio() has taken in. So the writes that pass the filters of such a
 * device get an end_io of ours, and its gate counts them until they are done.
 *
 * There is one for each disk, so that disks do not wait for each other, be it
 * for memory or for a driver that blocks. It stays until the disk is released:
 * writes and bios that are held back may outlive the filters.
 */
struct blk_filter_gate {
	atomic_t writes;
	mempool_t pool;		/* of struct blk_filter_write */

	spinlock_t lock;	/* for what follows */
	unsigned int closed;
	struct bio_list held;
	/*
	 * To be submitted again: there was no memory to count them, or they
	 * were held back while others were waited for. Whoever puts the first
	 * one in queues the work, which takes all.
	 */
	struct bio_list retry;
	struct work_struct work;
};

struct blk_filter_write {
	struct blk_filter_gate *gate;
	bio_end_io_t *end_io;
	void *private;
};

static struct workqueue_struct *blk_filter_wq;

static void blk_filter_retry_work(struct work_struct *work)
{
	struct blk_filter_gate *gate =
		container_of(work, struct blk_filter_gate, work);
	struct bio_list bios;
	struct bio *bio;

	spin_lock_irq(&gate->lock);
	bios = gate->retry;
	bio_list_init(&gate->retry);
	spin_unlock_irq(&gate->lock);

	/* The disk and the gate may go as soon as the last bio has ended. */
	while ((bio = bio_list_pop(&bios))) {
		/* Wait until there is one to be had, and leave it in the pool. */
		mempool_free(mempool_alloc(&gate->pool, GFP_NOIO), &gate->pool);
		blk_filter_resubmit_bio(bio);
	}
}

/* Before the disk's first filter is in the list, if not earlier. */
static int blk_filter_make_gate(struct gendisk *disk)
{
	struct blk_filter_gate *gate;

	if (queue_is_mq(disk->queue) || READ_ONCE(disk->filter_gate))
		return 0;

	gate = kzalloc_obj(*gate);
	if (!gate)
		return -ENOMEM;
	if (mempool_init_kmalloc_pool(&gate->pool, BLK_FILTER_MIN_WRITES,
				      sizeof(struct blk_filter_write))) {
		kfree(gate);
		return -ENOMEM;
	}
	spin_lock_init(&gate->lock);
	INIT_WORK(&gate->work, blk_filter_retry_work);

	/* Not under open_mutex in blk_filter_freeze(): another may be first. */
	if (cmpxchg(&disk->filter_gate, NULL, gate)) {
		mempool_exit(&gate->pool);
		kfree(gate);
	}
	return 0;
}

/*
 * The disk is released: all of its bios have ended, so nothing is in the lists
 * and the work is not queued.
 */
void blk_filter_release(struct gendisk *disk)
{
	struct blk_filter_gate *gate = disk->filter_gate;

	if (gate) {
		mempool_exit(&gate->pool);
		kfree(gate);
	}
}

static void blk_filter_uncount(struct blk_filter_gate *gate)
{
	if (atomic_dec_and_test(&gate->writes))
		wake_up_var(&gate->writes);
}

static void blk_filter_end_write(struct bio *bio)
{
	struct blk_filter_write *write = bio->bi_private;
	struct blk_filter_gate *gate = write->gate;

	bio->bi_end_io = write->end_io;
	bio->bi_private = write->private;
	mempool_free(write, &gate->pool);

	/* The disk and the gate may go as soon as the bio has ended. */
	blk_filter_uncount(gate);

	/* Not ->bi_end_io(): a chained bio is completed in bio_endio() only. */
	bio_endio(bio);
}

/*
 * The work is queued under the lock, and only for bios that no work that is
 * queued already takes: it would find nothing, perhaps when the gate is gone.
 */
static void blk_filter_retry(struct blk_filter_gate *gate,
			     struct bio_list *bios)
{
	lockdep_assert_held(&gate->lock);
	if (bio_list_empty(bios))
		return;
	if (bio_list_empty(&gate->retry))
		queue_work(blk_filter_wq, &gate->work);
	bio_list_merge_init(&gate->retry, bios);
}

static void blk_filter_put_off(struct blk_filter_gate *gate, struct bio *bio)
{
	struct bio_list bios;

	bio_list_init(&bios);
	bio_list_add(&bios, bio);
	guard(spinlock_irqsave)(&gate->lock);
	blk_filter_retry(gate, &bios);
}

/* Holds a bio back if the gate is closed. */
static bool blk_filter_hold(struct blk_filter_gate *gate, struct bio *bio)
{
	guard(spinlock_irqsave)(&gate->lock);
	if (!gate->closed)
		return false;
	bio_list_add(&gate->held, bio);
	return true;
}

/*
 * Whether a bio is counted at the gate, or ends before one that is: one that it
 * is chained to, be it the rest of a bio that was split, or the next discard of
 * a row. Neither that one nor what is saved of it can go meanwhile, but it may
 * be counted at the gate of a lower disk at this very moment.
 */
static bool blk_filter_is_counted(struct blk_filter_gate *gate, struct bio *bio)
{
	struct blk_filter_write *write;
	bio_end_io_t *end_io;
	void *private;

	do {
		do {
			/* Pairs with the release in blk_filter_count_write(). */
			end_io = smp_load_acquire(&bio->bi_end_io);
			private = READ_ONCE(bio->bi_private);
			/* Pairs with the smp_wmb() there. */
			smp_rmb();
		} while (end_io != READ_ONCE(bio->bi_end_io));

		/* A driver that remaps bios in place passes ours on. */
		while (end_io == blk_filter_end_write) {
			write = private;
			if (write->gate == gate)
				return true;
			end_io = write->end_io;
			private = write->private;
		}
		bio = private;
		/* %NULL: it is being chained at this moment. */
	} while (end_io == bio_chain_endio && bio);

	return false;
}

/* Returns %true if the bio is not to be submitted now. */
static bool blk_filter_count_write(struct blk_filter_gate *gate,
				   struct bio *bio)
{
	struct blk_filter_write *write;

	/*
	 * A bio that its driver has split comes again: what remains of it, and
	 * the front part too if the driver could not serve that and requeues
	 * it. The whole was counted, and ends when both have. So neither must
	 * be held back, and neither needs to be counted.
	 */
	if (blk_filter_is_counted(gate, bio))
		return false;

	write = mempool_alloc(&gate->pool, GFP_NOWAIT);
	if (unlikely(!write)) {
		blk_filter_put_off(gate, bio);
		return true;
	}

	atomic_inc(&gate->writes);
	/* Pairs with the barrier in blk_filter_close_gate(). */
	smp_mb__after_atomic();
	if (unlikely(READ_ONCE(gate->closed)) && blk_filter_hold(gate, bio)) {
		mempool_free(write, &gate->pool);
		blk_filter_uncount(gate);
		return true;
	}

	write->gate = gate;
	write->end_io = bio->bi_end_io;
	write->private = bio->bi_private;
	/*
	 * For bios that are chained to this one blk_filter_is_counted() may
	 * look at both meanwhile. What it sees must belong together.
	 */
	WRITE_ONCE(bio->bi_end_io, NULL);
	/* Pairs with the smp_rmb() there. */
	smp_wmb();
	WRITE_ONCE(bio->bi_private, write);
	/* Pairs with the acquire there. */
	smp_store_release(&bio->bi_end_io, blk_filter_end_write);
	return false;
}

static void blk_filter_open_gate(struct gendisk *disk)
{
	struct blk_filter_gate *gate = disk->filter_gate;

	guard(spinlock_irq)(&gate->lock);
	WRITE_ONCE(gate->closed, gate->closed - 1);
	if (!gate->closed)
		blk_filter_retry(gate, &gate->held);
}

/*
 * Holds back new writes to a bio-based disk, so that those on their way can be
 * waited for; reads too if its driver counts these with them.
 * That cannot be left to freezing the queue: when a driver has split a bio, what
 * remains of it would wait outside, and the part inside does not end without it.
 */
static void blk_filter_close_gate(struct gendisk *disk)
{
	struct blk_filter_gate *gate = disk->filter_gate;

	scoped_guard(spinlock_irq, &gate->lock)
		WRITE_ONCE(gate->closed, gate->closed + 1);
	/* A write either sees the gate closed, or is counted for who waits. */
	smp_mb();
}

static int blk_filter_wait_writes(struct gendisk *disk, unsigned long end)
{
	struct blk_filter_gate *gate = disk->filter_gate;
	long left;

	do {
		left = clamp((long)(end - jiffies), 1L, (long)HZ / 4);
		left = ___wait_var_event(&gate->writes,
					 ___wait_cond_timeout(!atomic_read(&gate->writes)),
					 TASK_KILLABLE, 0, left,
					 __ret = schedule_timeout(__ret));
		if (left)
			return left > 0 ? 0 : -EINTR;
		/* One may be chained to a write that was just being counted. */
		guard(spinlock_irq)(&gate->lock);
		blk_filter_retry(gate, &gate->held);
	} while (time_before(jiffies, end));

	return -ETIMEDOUT;
}

static enum blk_filter_verdict blk_filter_show_bio(struct blk_filter *filter,
						   struct bio *bio)
{
	struct block_device *bdev = filter->bdev;
	sector_t start, end;

	start = max(bio->bi_iter.bi_sector, bdev->bd_start_sect);
	end = min(bio_end_sector(bio),
		  bdev->bd_start_sect + bdev_nr_sectors(bdev));
	if (start >= end)
		return BLK_FILTER_PASS;

	return filter->ops->submit_bio(filter, bio, start - bdev->bd_start_sect,
				       end - start);
}

bool __blk_filter_bio(struct bio *bio)
{
	struct gendisk *disk = bio->bi_bdev->bd_disk;
	enum blk_filter_verdict verdict = BLK_FILTER_PASS;
	struct blk_filter_gate *gate;
	struct blk_filter *filter;

	if (!bio_sectors(bio))
		return false;

	/*
	 * Device-mapper wants bios that are polled to be submitted as a whole
	 * before that, and has a list in their bi_private. So they are not
	 * polled, but for what remains of one that was split before the disk's
	 * first filter was there: it ends before that filter is ready.
	 */
	if (bdev_test_flag(bio->bi_bdev, BD_HAS_SUBMIT_BIO) &&
	    (bio->bi_opf & REQ_POLLED)) {
		if (bio->bi_opf & REQ_DRV)
			return false;
		bio_clear_polled(bio);
	}

	rcu_read_lock();
	hlist_for_each_entry_rcu(filter, &disk->filters, node) {
		verdict = blk_filter_show_bio(filter, bio);
		if (verdict != BLK_FILTER_PASS)
			break;
	}
	rcu_read_unlock();

	/* There is a list as long as a bio is being submitted. */
	if (verdict == BLK_FILTER_AGAIN)
		bio_list_add(&current->bio_list[0], bio);
	if (verdict != BLK_FILTER_PASS)
		return true;

	if (!bdev_test_flag(bio->bi_bdev, BD_HAS_SUBMIT_BIO))
		return false;
	/*
	 * The list was not empty, and the gate was there before its first
	 * filter. Pairs with hlist_add_head_rcu().
	 */
	smp_rmb();
	gate = READ_ONCE(disk->filter_gate);
	if (op_is_write(bio_op(bio)))
		return blk_filter_count_write(gate, bio);
	/*
	 * Reads are held back only where they are waited for too. Elsewhere the
	 * filter of another partition may need one for a counted write's sake.
	 */
	return unlikely(READ_ONCE(gate->closed)) &&
	       disk->fops->bios_in_flight && blk_filter_hold(gate, bio);
}

static bool bdev_overlaps(struct block_device *a, struct block_device *b)
{
	return a->bd_disk == b->bd_disk &&
	       a->bd_start_sect < b->bd_start_sect + bdev_nr_sectors(b) &&
	       b->bd_start_sect < a->bd_start_sect + bdev_nr_sectors(a);
}

/* More devices than any stack has that makes sense. */
#define BLK_FILTER_MAX_STACK	4096

/*
 * The block device that a file is, or those that its file system is on; as
 * bd_get_slaves() does it.
 */
static int blk_filter_get_file_bdevs(struct file *file,
				     struct block_device **bdevs, int room)
{
	struct class_dev_iter iter;
	struct super_block *sb;
	struct device *dev;
	int count = 0;

	if (S_ISBLK(file->f_mapping->host->i_mode)) {
		if (!room)
			return -E2BIG;
		bdevs[0] = file_bdev(file);
		get_device(&bdevs[0]->bd_device);
		return 1;
	}

	/* Of an overlayfs, the file system that has the data. */
	sb = d_real_inode(file_dentry(file))->i_sb;
	class_dev_iter_init(&iter, &block_class, NULL, NULL);
	while (count >= 0 && (dev = class_dev_iter_next(&iter))) {
		/* A hidden disk has no number. */
		if (!dev->devt || !super_uses_dev(sb, dev->devt))
			continue;
		if (count < room) {
			bdevs[count++] = dev_to_bdev(get_device(dev));
			continue;
		}
		while (count)
			put_device(&bdevs[--count]->bd_device);
		count = -E2BIG;
	}
	class_dev_iter_exit(&iter);
	return count;
}

/*
 * After the first @count devices there are @more; keeps those of them that are
 * not there yet.
 */
static int blk_filter_merge_bdevs(struct block_device **bdevs, int count,
				  int more)
{
	int end = count + more, i, j;

	for (i = count; i < end; i++) {
		for (j = 0; j < count; j++)
			if (bdevs[j] == bdevs[i])
				break;
		if (j == count)
			bdevs[count++] = bdevs[i];
		else
			put_device(&bdevs[i]->bd_device);
	}
	return count;
}

static struct file *blk_filter_get_backing_file(struct gendisk *disk)
{
	/* A module is freed an RCU grace period after its disks were removed. */
	guard(rcu)();
	if (!disk_live(disk) || !disk->fops->get_backing_file)
		return NULL;
	return disk->fops->get_backing_file(disk);
}

/* Has room for BLK_FILTER_MAX_STACK devices, and puts those that it has. */
static int blk_filter_search_stack(struct block_device **reached, int count,
				   struct block_device *lower)
{
	struct file *file;
	int next, ret = 0;

	for (next = 0; next < count; next++) {
		if (bdev_overlaps(reached[next], lower)) {
			ret = 1;
			break;
		}
		ret = bd_get_slaves(reached[next]->bd_disk, reached + count,
				    BLK_FILTER_MAX_STACK - count);
		if (ret < 0)
			break;
		count = blk_filter_merge_bdevs(reached, count, ret);
		ret = 0;
		file = blk_filter_get_backing_file(reached[next]->bd_disk);
		if (!file)
			continue;
		ret = blk_filter_get_file_bdevs(file, reached + count,
						BLK_FILTER_MAX_STACK - count);
		fput(file);
		if (ret < 0)
			break;
		count = blk_filter_merge_bdevs(reached, count, ret);
		ret = 0;
	}

	while (count)
		put_device(&reached[--count]->bd_device);
	return ret;
}

/**
 * blk_filter_reaches - whether I/O to a device may reach another one
 * @bdev: the device that I/O is submitted to
 * @lower: the other one
 *
 * Looks through partitions, loop devices with all devices of the file systems
 * that their files are on, and the drivers that tell bd_link_disk_holder() what
 * they are made of, as device-mapper and MD do. What of a device such a driver
 * or file system uses is not known: all of it, then.
 *
 * The caller has both devices open. What they are made of may change
 * meanwhile, unless it is open elsewhere too.
 *
 * Context: May sleep.
 * Return: 1 if it may, 0 if not, -ENOMEM, or -E2BIG if there are too many
 * devices to tell.
 */
int blk_filter_reaches(struct block_device *bdev, struct block_device *lower)
{
	struct block_device **reached;
	int ret;

	reached = kvmalloc_objs(*reached, BLK_FILTER_MAX_STACK);
	if (!reached)
		return -ENOMEM;
	get_device(&bdev->bd_device);
	reached[0] = bdev;
	ret = blk_filter_search_stack(reached, 1, lower);
	kvfree(reached);
	return ret;
}
EXPORT_SYMBOL_GPL(blk_filter_reaches);

/**
 * blk_filter_file_reaches - whether I/O to a file may reach a device
 * @file: the file, or a block device that was opened
 * @lower: the device
 *
 * As blk_filter_reaches(), for each device of the file's file system. Where that
 * has none, as in memory or on a network, the file reaches nothing.
 *
 * Context: May sleep.
 * Return: As blk_filter_reaches().
 */
int blk_filter_file_reaches(struct file *file, struct block_device *lower)
{
	struct block_device **reached;
	int ret;

	reached = kvmalloc_objs(*reached, BLK_FILTER_MAX_STACK);
	if (!reached)
		return -ENOMEM;
	ret = blk_filter_get_file_bdevs(file, reached, BLK_FILTER_MAX_STACK);
	if (ret > 0)
		ret = blk_filter_search_stack(reached, ret, lower);
	kvfree(reached);
	return ret;
}
EXPORT_SYMBOL_GPL(blk_filter_file_reaches);

/*
 * Not blk_mq_freeze_queue(), which waits for ever: a disk that is a file, like
 * loop or nbd, may wait for a file system that the caller has frozen.
 */
static int blk_filter_wait_frozen(struct request_queue *q, unsigned long end)
{
	while (!blk_mq_freeze_queue_wait_timeout(q, HZ / 4)) {
		if (fatal_signal_pending(current))
			return -EINTR;
		if (time_after(jiffies, end))
			return -ETIMEDOUT;
	}
	return 0;
}

static bool blk_filter_has_gate(struct block_device *bdev)
{
	return !queue_is_mq(bdev_get_queue(bdev));
}

/*
 * For each device, how many of the others are stacked on its disk. What is below
 * another one has a larger number; where two have the same, neither is.
 */
static int blk_filter_get_levels(struct block_device **bdevs,
				 unsigned int count, unsigned int *levels)
{
	unsigned int i, j;
	int ret;

	for (i = 0; i < count; i++) {
		for (j = 0; j < count; j++) {
			if (bdevs[j]->bd_disk == bdevs[i]->bd_disk)
				continue;
			ret = blk_filter_reaches(bdevs[j],
						 bdevs[i]->bd_disk->part0);
			if (ret < 0)
				return ret;
			levels[i] += ret;
		}
	}
	return 0;
}

/* All of a level at once: the time is that of an RCU grace period, or more. */
static int blk_filter_freeze_level(struct block_device **bdevs,
				   unsigned int count, unsigned int *levels,
				   unsigned int level, unsigned long end)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; i < count; i++)
		if (levels[i] == level && blk_filter_has_gate(bdevs[i]))
			blk_filter_close_gate(bdevs[i]->bd_disk);
	for (i = 0; i < count && !ret; i++)
		if (levels[i] == level && blk_filter_has_gate(bdevs[i]))
			ret = blk_filter_wait_writes(bdevs[i]->bd_disk, end);
	if (ret)
		goto open_gates;

	for (i = 0; i < count; i++)
		if (levels[i] == level)
			blk_freeze_queue_start(bdev_get_queue(bdevs[i]));
	for (i = 0; i < count && !ret; i++)
		if (levels[i] == level)
			ret = blk_filter_wait_frozen(bdev_get_queue(bdevs[i]), end);
	if (!ret)
		return 0;

	for (i = 0; i < count; i++)
		if (levels[i] == level)
			blk_mq_unfreeze_queue_nomemrestore(bdev_get_queue(bdevs[i]));
open_gates:
	for (i = 0; i < count; i++)
		if (levels[i] == level && blk_filter_has_gate(bdevs[i]))
			blk_filter_open_gate(bdevs[i]->bd_disk);
	return ret;
}

static void blk_filter_unfreeze_one(struct block_device *bdev)
{
	blk_mq_unfreeze_queue_nomemrestore(bdev_get_queue(bdev));
	if (blk_filter_has_gate(bdev))
		blk_filter_open_gate(bdev->bd_disk);
}

/**
 * blk_filter_freeze - stop the I/O of devices and wait for their writes
 * @bdevs: the devices, which the caller has open; some may be on the same disk
 * @count: how many
 * @memflags: filled for blk_filter_unfreeze()
 *
 * On return no write is between the filters of the devices' disks and their
 * media: each one that they have let pass is done, on bio-based devices too,
 * and no filter's ->submit_bio() runs. New bios wait outside. Until
 * blk_filter_unfreeze() the caller must not wait for I/O to the disks, and its
 * allocations are GFP_NOIO.
 *
 * Devices that are stacked on others of them are frozen before these, whose
 * I/O theirs waits for; the rest at once.
 *
 * Context: May sleep.
 * Return: 0, -ENOMEM, -EINTR if the task was killed, -ETIMEDOUT if the I/O that
 * is on its way was not done in 30 seconds, or what blk_filter_reaches()
 * returns; then nothing is frozen.
 */
int blk_filter_freeze(struct block_device **bdevs, unsigned int count,
		      unsigned int *memflags)
{
	unsigned long end = jiffies + BLK_FILTER_TIMEOUT;
	unsigned int *levels, level, i;
	int ret;

	/* From here on: the caller may have frozen the file systems. */
	*memflags = memalloc_noio_save();
	levels = kcalloc(count, sizeof(*levels), GFP_KERNEL);
	ret = levels ? blk_filter_get_levels(bdevs, count, levels) : -ENOMEM;
	for (i = 0; i < count && !ret; i++)
		ret = blk_filter_make_gate(bdevs[i]->bd_disk);
	if (ret)
		goto out;

	for (level = 0; level < count && !ret; level++)
		ret = blk_filter_freeze_level(bdevs, count, levels, level, end);
	if (ret) {
		/* The last one has undone its own. */
		for (i = 0; i < count; i++)
			if (levels[i] + 1 < level)
				blk_filter_unfreeze_one(bdevs[i]);
	}
out:
	if (ret)
		memalloc_noio_restore(*memflags);
	kfree(levels);
	return ret;
}
EXPORT_SYMBOL_GPL(blk_filter_freeze);

/**
 * blk_filter_unfreeze - let the I/O of devices go on
 * @bdevs: the devices that were given to blk_filter_freeze()
 * @count: how many
 * @memflags: what blk_filter_freeze() has filled
 */
void blk_filter_unfreeze(struct block_device **bdevs, unsigned int count,
			 unsigned int memflags)
{
	while (count--)
		blk_filter_unfreeze_one(bdevs[count]);
	memalloc_noio_restore(memflags);
}
EXPORT_SYMBOL_GPL(blk_filter_unfreeze);

/* May sleep. */
static void blk_filter_put(struct blk_filter *filter)
{
	struct module *owner = filter->ops->owner;

	if (refcount_dec_and_test(&filter->ref)) {
		filter->ops->free(filter);
		module_put(owner);
	}
}

/* Under the disk's open_mutex, or else under RCU. */
static struct blk_filter *blk_filter_of(struct block_device *bdev)
{
	struct gendisk *disk = bdev->bd_disk;
	struct blk_filter *filter;

	hlist_for_each_entry_rcu(filter, &disk->filters, node,
				 lockdep_is_held(&disk->open_mutex))
		if (filter->bdev == bdev)
			return filter;
	return NULL;
}

static struct blk_filter_driver *blk_filter_find_driver(const char *name)
{
	struct blk_filter_driver *driver;

	lockdep_assert_held(&blk_filter_drivers_lock);
	list_for_each_entry(driver, &blk_filter_drivers, list)
		if (!strcmp(driver->ops->name, name))
			return driver;
	return NULL;
}

static const struct blk_filter_ops *blk_filter_get_driver(const char *name)
{
	struct blk_filter_driver *driver;
	struct module *owner;

	guard(mutex)(&blk_filter_drivers_lock);
	driver = blk_filter_find_driver(name);
	if (!driver)
		return NULL;
	owner = driver->ops->owner;
	/* A module whose init function fails is freed in spite of references. */
	if ((owner && module_is_coming(owner)) || !try_module_get(owner))
		return NULL;
	return driver->ops;
}

static int __blk_filter_attach(struct block_device *bdev,
			       const struct blk_filter_ops *ops,
			       void __user *opt, u32 optlen)
{
	struct gendisk *disk = bdev->bd_disk;
	struct blk_filter *filter;
	int ret;

	lockdep_assert_held(&disk->open_mutex);

	/* A removed partition has left the table, a removed disk is not live. */
	if (!disk_live(disk) ||
	    xa_load(&disk->part_tbl, bdev_partno(bdev)) != bdev)
		return -ENODEV;

	filter = blk_filter_of(bdev);
	if (filter)
		return filter->ops == ops ? -EALREADY : -EBUSY;

	ret = blk_filter_make_gate(disk);
	if (ret)
		return ret;

	filter = ops->attach(bdev, opt, optlen);
	if (IS_ERR(filter))
		return PTR_ERR(filter);
	filter->ops = ops;
	filter->bdev = bdev;
	filter->ready = false;
	refcount_set(&filter->ref, 1);
	hlist_add_head_rcu(&filter->node, &disk->filters);
	return 0;
}

static void __blk_filter_detach(struct blk_filter *filter)
{
	hlist_del_rcu(&filter->node);
	/* Not by a freeze: the queue may be dead, or quiesced for ever. */
	synchronize_rcu();
	blk_filter_put(filter);
}

static int blk_filter_detach(struct block_device *bdev, const char *name)
{
	struct gendisk *disk = bdev->bd_disk;
	struct blk_filter *filter;
	int ret = -ENOENT;

	mutex_lock(&disk->open_mutex);
	filter = blk_filter_of(bdev);
	if (filter && !strcmp(filter->ops->name, name)) {
		ret = filter->ready ? filter->ops->may_detach(filter) : -EBUSY;
		if (!ret)
			__blk_filter_detach(filter);
	}
	mutex_unlock(&disk->open_mutex);

	if (!ret)
		static_branch_slow_dec_deferred(&blk_filter_enabled);
	return ret;
}

static bool blk_filter_in_flight(struct gendisk *disk)
{
	struct block_device *part;
	unsigned long idx;
	int cpu, writes = 0;

	if (disk->fops->bios_in_flight)
		return disk->fops->bios_in_flight(disk);

	guard(rcu)();
	xa_for_each(&disk->part_tbl, idx, part)
		for_each_possible_cpu(cpu)
			writes += part_stat_local_read_cpu(part,
							   in_flight[WRITE],
							   cpu);
	return writes > 0;
}

/*
 * What a bio-based driver took in before the disk's first filter was there is
 * not counted. The driver or its statistics (unless they are switched off) know
 * of it once ->submit_bio() has returned, which a short freeze makes sure of.
 * New ones are held back, since nobody could tell them from the old ones.
 */
static int blk_filter_wait_uncounted(struct gendisk *disk)
{
	unsigned long end = jiffies + BLK_FILTER_TIMEOUT;
	unsigned int memflags;
	int ret;

	if (queue_is_mq(disk->queue))
		return 0;

	blk_filter_close_gate(disk);
	ret = blk_filter_wait_writes(disk, end);
	if (!ret) {
		memflags = memalloc_noio_save();
		blk_freeze_queue_start(disk->queue);
		ret = blk_filter_wait_frozen(disk->queue, end);
		blk_mq_unfreeze_queue(disk->queue, memflags);
	}
	while (!ret && blk_filter_in_flight(disk)) {
		schedule_timeout_killable(1);
		if (fatal_signal_pending(current))
			ret = -EINTR;
		else if (time_after(jiffies, end))
			ret = -ETIMEDOUT;
	}
	blk_filter_open_gate(disk);
	return ret;
}

static int blk_filter_attach(struct block_device *bdev, const char *name,
			     void __user *opt, u32 optlen)
{
	const struct blk_filter_ops *ops;
	struct blk_filter *filter;
	int ret;

	/* Zone write plugging and DAX have ways past the filters. */
	if (bdev_is_zoned(bdev) || blk_queue_dax(bdev_get_queue(bdev)))
		return -EOPNOTSUPP;

	ops = blk_filter_get_driver(name);
	if (!ops)
		return -ENOENT;

	/* Ahead of the mutex, since changing the key takes locks of its own. */
	static_branch_deferred_inc(&blk_filter_enabled);
	mutex_lock(&bdev->bd_disk->open_mutex);
	ret = __blk_filter_attach(bdev, ops, opt, optlen);
	mutex_unlock(&bdev->bd_disk->open_mutex);
	if (ret) {
		static_branch_slow_dec_deferred(&blk_filter_enabled);
		module_put(ops->owner);
		return ret;
	}

	ret = blk_filter_wait_uncounted(bdev->bd_disk);
	mutex_lock(&bdev->bd_disk->open_mutex);
	filter = blk_filter_of(bdev);
	/* Until it is ready, only the removal of the device takes it away. */
	if (filter && !ret)
		/* Pairs with the acquire in blk_filter_ctl(). */
		smp_store_release(&filter->ready, true);
	else if (filter)
		__blk_filter_detach(filter);
	else if (!ret)
		ret = -ENODEV;
	mutex_unlock(&bdev->bd_disk->open_mutex);
	if (ret && filter)
		static_branch_slow_dec_deferred(&blk_filter_enabled);
	return ret;
}

/*
 * The device goes away: a partition is deleted or its disk is removed. Nobody
 * can attach a filter any more.
 */
void blk_filter_drop(struct block_device *bdev)
{
	struct blk_filter *filter = blk_filter_of(bdev);

	if (filter) {
		/* First of all: bios that are on their way do not see it then. */
		filter->ops->gone(filter);
		__blk_filter_detach(filter);
		static_branch_slow_dec_deferred(&blk_filter_enabled);
	}
}

/*
 * A disk that becomes smaller cuts off its partitions too, though these keep
 * the size that they say they have.
 */
void __blk_filter_truncate(struct block_device *bdev, sector_t from,
			   sector_t to)
{
	struct blk_filter *filter;
	sector_t start, len, left;

	guard(rcu)();
	hlist_for_each_entry_rcu(filter, &bdev->bd_disk->filters, node) {
		len = bdev_nr_sectors(filter->bdev);
		if (filter->bdev == bdev)
			len = from;
		else if (bdev_is_partition(bdev))
			continue;
		start = filter->bdev->bd_start_sect - bdev->bd_start_sect;
		left = to > start ? to - start : 0;
		if (left < len)
			filter->ops->truncated(filter, left);
	}
}

void __blk_filter_change_media(struct gendisk *disk)
{
	struct blk_filter *filter;

	guard(rcu)();
	hlist_for_each_entry_rcu(filter, &disk->filters, node)
		filter->ops->truncated(filter, 0);
}

static struct blk_filter *blk_filter_get(struct block_device *bdev)
{
	struct blk_filter *filter;

	guard(rcu)();
	filter = blk_filter_of(bdev);
	if (filter && !refcount_inc_not_zero(&filter->ref))
		filter = NULL;
	return filter;
}

static int blk_filter_ctl(struct block_device *bdev,
			  const struct blkfilter_ctl *arg)
{
	struct blk_filter *filter = blk_filter_get(bdev);
	int ret = -ENOENT;

	if (!filter)
		return ret;
	/* Pairs with the release in blk_filter_attach(). */
	if (smp_load_acquire(&filter->ready) &&
	    !strcmp(filter->ops->name, arg->name))
		ret = filter->ops->ctl(filter, arg->cmd,
				       u64_to_user_ptr(arg->opt), arg->optlen);
	blk_filter_put(filter);
	return ret;
}

int blk_filter_ioctl(struct block_device *bdev, unsigned int cmd,
		     void __user *argp)
{
	union {
		u8 name[BLKFILTER_NAME_LENGTH];
		struct blkfilter_attach attach;
		struct blkfilter_detach detach;
		struct blkfilter_ctl ctl;
	} arg = {};

	/* Existing clients open the device read-only. */
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (copy_from_user(&arg, argp, min(_IOC_SIZE(cmd), sizeof(arg))))
		return -EFAULT;
	if (strnlen(arg.name, sizeof(arg.name)) == sizeof(arg.name))
		return -EINVAL;

	switch (_IOC_NR(cmd)) {
	case _IOC_NR(BLKFILTER_ATTACH):
		return blk_filter_attach(bdev, arg.name,
					 u64_to_user_ptr(arg.attach.opt),
					 arg.attach.optlen);
	case _IOC_NR(BLKFILTER_DETACH):
		return blk_filter_detach(bdev, arg.name);
	default:
		return blk_filter_ctl(bdev, &arg.ctl);
	}
}

ssize_t blk_filter_show(struct block_device *bdev, char *buf)
{
	struct blk_filter *filter;

	guard(rcu)();
	filter = blk_filter_of(bdev);
	return sysfs_emit(buf, "%s\n", filter ? filter->ops->name : "");
}

/**
 * blk_filter_register - make a filter driver known
 * @ops: the driver; must stay as long as its module
 *
 * May sleep.
 *
 * Return: 0, -EINVAL if the name is empty or too long, -EEXIST if another
 * driver has it, or -ENOMEM.
 */
int blk_filter_register(const struct blk_filter_ops *ops)
{
	struct blk_filter_driver *driver;

	if (!*ops->name || strlen(ops->name) >= BLKFILTER_NAME_LENGTH)
		return -EINVAL;

	guard(mutex)(&blk_filter_drivers_lock);
	if (blk_filter_find_driver(ops->name))
		return -EEXIST;
	driver = kmalloc_obj(*driver);
	if (!driver)
		return -ENOMEM;
	driver->ops = ops;
	list_add(&driver->list, &blk_filter_drivers);
	return 0;
}
EXPORT_SYMBOL_GPL(blk_filter_register);

/**
 * blk_filter_unregister - forget a filter driver
 * @ops: the driver, which was registered. It cannot be attached any more.
 *	Where it is attached it stays, and so does its module.
 *
 * May sleep.
 */
void blk_filter_unregister(const struct blk_filter_ops *ops)
{
	struct blk_filter_driver *driver;

	guard(mutex)(&blk_filter_drivers_lock);
	driver = blk_filter_find_driver(ops->name);
	list_del(&driver->list);
	kfree(driver);
}
EXPORT_SYMBOL_GPL(blk_filter_unregister);

static int __init blk_filter_setup(void)
{
	blk_filter_wq = alloc_workqueue("blk_filter",
					WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	if (!blk_filter_wq)
		panic("blk-filter: out of memory\n");
	return 0;
}
subsys_initcall(blk_filter_setup);
