/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _BLK_FILTER_INTERNAL_H
#define _BLK_FILTER_INTERNAL_H

#include <linux/blk-filter.h>
#include <linux/blk-mq.h>

void __blk_filter_truncate(struct block_device *bdev, sector_t from,
			   sector_t to);
void __blk_filter_drop(struct block_device *bdev);
int __blk_filter_ioctl(struct block_device *bdev, unsigned int cmd,
		       void __user *argp);
extern struct device_attribute dev_attr_filter;

/* Called before a new partition is visible. */
static inline void blk_filter_add_partition(struct block_device *bdev)
{
	if (blk_filter_in_use() &&
	    bdev_test_flag(bdev->bd_disk->part0, BD_HAS_FILTER))
		bdev_set_flag(bdev, BD_HAS_FILTER);
}

/*
 * The hook for bio-based drivers that complete writes before ->submit_bio()
 * returns. The caller holds a reference on the queue's usage counter.
 */
static inline bool blk_filter_sync_bio(struct bio *bio)
{
	return blk_filter_in_use() &&
	       (bdev_limits(bio->bi_bdev)->features & BLK_FEAT_SYNC_WRITE) &&
	       blk_filter_bio(bio);
}

/*
 * The size of @bdev, in sectors, changes: if it becomes smaller, writes to what
 * it loses go unseen. If it is a whole disk, its partitions lose what is past
 * its end. To be called before and after, or else a filter that begins something
 * in between would not know.
 */
static inline void blk_filter_truncate(struct block_device *bdev,
				       sector_t from, sector_t to)
{
	if (blk_filter_in_use() && to < from)
		__blk_filter_truncate(bdev, from, to);
}

/*
 * The disk is about to have another content; or it has, and was frozen before
 * that and still is.
 */
static inline void blk_filter_change_media(struct gendisk *disk)
{
	sector_t nr_sectors = bdev_nr_sectors(disk->part0);

	/* Without a medium it has no sectors; a partition may be open still. */
	blk_filter_truncate(disk->part0, max(nr_sectors, 1), 0);
}

/*
 * Called before a request is issued that was not created from a bio of its disk.
 * Filters have not seen what it writes, so report it like a change of the medium.
 * A queue can outlive its disk.
 */
static inline void blk_filter_bypass(struct request *rq)
{
	struct gendisk *disk;

	if (!blk_filter_in_use() || !op_is_write(req_op(rq)))
		return;
	guard(rcu)();
	disk = READ_ONCE(rq->q->disk);
	if (disk)
		blk_filter_change_media(disk);
}

/*
 * The device goes away: a partition is deleted or its disk is removed. Nobody
 * can attach a filter any more.
 */
static inline void blk_filter_drop(struct block_device *bdev)
{
	if (blk_filter_in_use())
		__blk_filter_drop(bdev);
}

static inline int blk_filter_ioctl(struct block_device *bdev, unsigned int cmd,
				   void __user *argp)
{
	return IS_ENABLED(CONFIG_BLK_FILTER) ?
		__blk_filter_ioctl(bdev, cmd, argp) : -ENOIOCTLCMD;
}

#endif /* _BLK_FILTER_INTERNAL_H */
