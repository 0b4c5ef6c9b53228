/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _BLK_FILTER_INTERNAL_H
#define _BLK_FILTER_INTERNAL_H

#include <linux/blk-filter.h>
#include <linux/blk-mq.h>

#ifdef CONFIG_BLK_FILTER

void __blk_filter_truncate(struct block_device *bdev, sector_t from,
			   sector_t to);
void __blk_filter_change_media(struct gendisk *disk);
void blk_filter_drop(struct block_device *bdev);
int blk_filter_ioctl(struct block_device *bdev, unsigned int cmd,
		     void __user *argp);
ssize_t blk_filter_show(struct block_device *bdev, char *buf);

/* Called before a new partition is visible. */
static inline void blk_filter_add_partition(struct block_device *bdev)
{
	if (bdev_test_flag(bdev->bd_disk->part0, BD_HAS_FILTER))
		bdev_set_flag(bdev, BD_HAS_FILTER);
}

/*
 * The hook for bio-based drivers that complete writes before ->submit_bio()
 * returns. The caller holds a reference on the queue's usage counter.
 */
static inline bool blk_filter_sync_bio(struct bio *bio)
{
	return static_branch_unlikely(&blk_filter_enabled) &&
	       bdev_test_flag(bio->bi_bdev, BD_HAS_FILTER) &&
	       (bdev_limits(bio->bi_bdev)->features & BLK_FEAT_SYNC_WRITE) &&
	       __blk_filter_bio(bio);
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
	if (static_branch_unlikely(&blk_filter_enabled) && to < from)
		__blk_filter_truncate(bdev, from, to);
}

/*
 * The disk is about to have another content; or it has, and was frozen before
 * that and still is.
 */
static inline void blk_filter_change_media(struct gendisk *disk)
{
	if (static_branch_unlikely(&blk_filter_enabled))
		__blk_filter_change_media(disk);
}

/*
 * Called before a request is issued that was not created from a bio of its disk.
 * Filters have not seen what it writes, so report it like a change of the medium.
 */
static inline void blk_filter_bypass(struct request *rq)
{
	if (static_branch_unlikely(&blk_filter_enabled) &&
	    op_is_write(req_op(rq)) && rq->q->disk)
		__blk_filter_change_media(rq->q->disk);
}

#else

static inline void blk_filter_add_partition(struct block_device *bdev)
{
}

static inline bool blk_filter_sync_bio(struct bio *bio)
{
	return false;
}

static inline void blk_filter_truncate(struct block_device *bdev,
				       sector_t from, sector_t to)
{
}

static inline void blk_filter_change_media(struct gendisk *disk)
{
}

static inline void blk_filter_bypass(struct request *rq)
{
}

static inline void blk_filter_drop(struct block_device *bdev)
{
}

static inline int blk_filter_ioctl(struct block_device *bdev, unsigned int cmd,
				   void __user *argp)
{
	return -ENOTTY;
}

#endif /* CONFIG_BLK_FILTER */

#endif /* _BLK_FILTER_INTERNAL_H */
