/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _BLK_FILTER_INTERNAL_H
#define _BLK_FILTER_INTERNAL_H

#include <linux/blkdev.h>
#include <linux/jump_label_ratelimit.h>

#ifdef CONFIG_BLK_FILTER

extern struct static_key_false_deferred blk_filter_enabled;

bool __blk_filter_bio(struct bio *bio);
void __blk_filter_truncate(struct block_device *bdev, sector_t from,
			   sector_t to);
void __blk_filter_change_media(struct gendisk *disk);
void blk_filter_drop(struct block_device *bdev);
void blk_filter_release(struct gendisk *disk);
int blk_filter_ioctl(struct block_device *bdev, unsigned int cmd,
		     void __user *argp);
ssize_t blk_filter_show(struct block_device *bdev, char *buf);

/*
 * Show a bio to the filters of its disk. Returns %true if one of them has
 * taken it. The caller holds a reference on the queue's usage counter, which
 * makes freezing the queue a barrier for the filters.
 */
static inline bool blk_filter_bio(struct bio *bio)
{
	if (static_branch_unlikely(&blk_filter_enabled.key) &&
	    !hlist_empty(&bio->bi_bdev->bd_disk->filters))
		return __blk_filter_bio(bio);
	return false;
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
	if (static_branch_unlikely(&blk_filter_enabled.key) && to < from)
		__blk_filter_truncate(bdev, from, to);
}

/*
 * The disk is about to have another content; or it has, and was frozen before
 * that and still is.
 */
static inline void blk_filter_change_media(struct gendisk *disk)
{
	if (static_branch_unlikely(&blk_filter_enabled.key))
		__blk_filter_change_media(disk);
}

#else

static inline bool blk_filter_bio(struct bio *bio)
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

static inline void blk_filter_drop(struct block_device *bdev)
{
}

static inline void blk_filter_release(struct gendisk *disk)
{
}

static inline int blk_filter_ioctl(struct block_device *bdev, unsigned int cmd,
				   void __user *argp)
{
	return -ENOTTY;
}

#endif /* CONFIG_BLK_FILTER */

#endif /* _BLK_FILTER_INTERNAL_H */
