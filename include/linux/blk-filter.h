/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Block device filters: drivers that see the bios of a block device before
 * the device does. See Documentation/block/blkfilter.rst.
 */
#ifndef _LINUX_BLK_FILTER_H
#define _LINUX_BLK_FILTER_H

#include <linux/blkdev.h>
#include <linux/jump_label.h>
#include <linux/list.h>
#include <linux/refcount.h>
#include <uapi/linux/blk-filter.h>

struct blk_filter;
struct module;

/**
 * struct blk_filter_ops - a filter driver; what is not optional it must have
 * @name: what user space calls it, shorter than BLKFILTER_NAME_LENGTH
 * @owner: the module, which cannot be unloaded while the filter is attached
 * @attach: allocate an instance for @bdev, or return an ERR_PTR(), which user
 *	space gets. @opt and @optlen are those of struct blkfilter_attach, not
 *	looked at before. Process context, the disk's open_mutex is held: it
 *	must not open or close a device of the disk.
 * @may_detach: optional. User space wants the filter off; an error refuses it.
 *	Nothing may begin afterwards that could not stand the detach. Process context,
 *	the disk's open_mutex is held.
 * @gone: optional. The device is going away, and the instance will leave it when this
 *	has returned; bios that are on their way may still come and reach the
 *	media. Process context, the disk's open_mutex is held, and it must not
 *	wait for I/O.
 * @truncated: optional. The content of the device from @nr_sectors on is about to be lost
 *	without bios, or has just been, which is told too: the device or its
 *	whole disk becomes smaller, or with 0 gets another medium or is written
 *	by requests that were not made from bios for it. A partition
 *	that loses its end with the disk keeps its size. Writes to what is cut
 *	off are not seen by @submit_bio. Called under rcu_read_lock(); must not
 *	sleep.
 * @ctl: a command from user space, with what it has put into struct
 *	blkfilter_ctl, not looked at before. Returns -ENOTTY if there is no such
 *	command. Process context; several may run at once, and concurrently with
 *	@may_detach and @gone. The device stays open meanwhile.
 * @submit_bio: a bio that touches the sectors from @sector on, @nr_sectors of
 *	them, counted from the start of the filter's device and cut to it. The
 *	bio itself may be for the whole disk or for another partition, and
 *	bi_sector counts from the start of the disk. Returns true if the filter
 *	has completed the bio, or has taken it by blk_filter_take_bio(): then it
 *	completes it later or, from a context that may sleep, calls
 *	blk_filter_resubmit_bio(). Called under rcu_read_lock() with interrupts
 *	enabled: it must not sleep or submit bios. Bios of the filter that it
 *	adds to @own are submitted after it has returned. A bio can come again,
 *	whole or in pieces that the block layer or the device's driver has split
 *	it in.
 * @free: the instance has left its device, no other callback runs or will
 *	run. What it has taken it must still end or resubmit; the module can be
 *	unloaded when this has returned, so its exit function waits for that.
 *	Process context; may sleep, but the disk's open_mutex may be held: it
 *	must not wait for I/O.
 */
struct blk_filter_ops {
	const char *name;
	struct module *owner;
	struct blk_filter *(*attach)(struct block_device *bdev,
				     void __user *opt, u32 optlen);
	int (*may_detach)(struct blk_filter *filter);
	void (*gone)(struct blk_filter *filter);
	void (*truncated)(struct blk_filter *filter, sector_t nr_sectors);
	int (*ctl)(struct blk_filter *filter, unsigned int cmd,
		   void __user *opt, u32 optlen);
	bool (*submit_bio)(struct blk_filter *filter, struct bio *bio,
			   sector_t sector, sector_t nr_sectors,
			   struct bio_list *own);
	void (*free)(struct blk_filter *filter);
};

/**
 * struct blk_filter - a filter on one block device, filled by the block layer
 * @node: in gendisk::filters while it is attached
 * @ops: its driver
 * @bdev: the device. The pointer is good while the filter is attached, and in
 *	->ctl().
 * @ref: references; one is the device's as long as the filter is attached
 */
struct blk_filter {
	struct hlist_node node;
	const struct blk_filter_ops *ops;
	struct block_device *bdev;
	refcount_t ref;
};

/**
 * blk_filter_take_bio - prepare to take a bio
 * @bio: the bio that ->submit_bio() was called for and will return true for
 *
 * A bio that is taken has to wait, so it becomes one whose submitter waits and
 * does not poll. To be called before another task can get the bio, as the
 * submitter may poll for parts of it that precede it, which writes to bi_opf.
 * Does not sleep.
 */
static inline void blk_filter_take_bio(struct bio *bio)
{
	/* Of a bio that was taken before, the submitter may still poll. */
	if (bio->bi_opf & (REQ_NOWAIT | REQ_POLLED))
		bio->bi_opf &= ~(REQ_NOWAIT | REQ_POLLED);
}

int blk_filter_register(const struct blk_filter_ops *ops);
void blk_filter_unregister(const struct blk_filter_ops *ops);

void blk_filter_resubmit_bio(struct bio *bio);
int blk_filter_start_quiesce(struct block_device *bdev);
bool blk_filter_wait_quiesce(struct block_device *bdev, long timeout);
void blk_filter_unquiesce(struct block_device *bdev);

DECLARE_STATIC_KEY_FALSE(blk_filter_enabled);

bool __blk_filter_bio(struct bio *bio);

/* Whether a filter driver has been registered. */
static inline bool blk_filter_in_use(void)
{
	return IS_ENABLED(CONFIG_BLK_FILTER) &&
	       static_branch_unlikely(&blk_filter_enabled);
}

/**
 * blk_filter_bio - show a bio to the filters of its disk
 * @bio: a bio that was submitted to the disk
 *
 * For the block layer and for bio-based drivers with ->wait_quiesce_bios(). Such
 * a driver calls it with the reference held that this operation waits for, and
 * before the bio is visible to anything else.
 *
 * Context: Process context, in ->submit_bio(). Does not sleep.
 * Return: %true if a filter has taken the bio.
 */
static inline bool blk_filter_bio(struct bio *bio)
{
	return blk_filter_in_use() &&
	       bdev_test_flag(bio->bi_bdev, BD_HAS_FILTER) &&
	       __blk_filter_bio(bio);
}

#endif /* _LINUX_BLK_FILTER_H */
