// SPDX-License-Identifier: GPL-2.0-only
/*
 * Block device filters: drivers that attach to a block device at run time and
 * see its bios before the device does.
 *
 * gendisk::filters has the filters of a disk and of its partitions. It is
 * written under the disk's open_mutex and read under RCU. As long as there is
 * one, BD_HAS_FILTER is set for all of them.
 *
 * The hook, blk_filter_bio(), is called under the reference that stopping the
 * device waits for: that on the queue's usage counter, or where a bio-based
 * driver completes writes later, what it counts them by.
 */
#include <linux/blk-filter.h>
#include <linux/blk-mq.h>
#include <linux/capability.h>
#include <linux/module.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include "blk.h"
#include "blk-filter.h"

/* Enabled when the first filter driver is registered, and never disabled. */
DEFINE_STATIC_KEY_FALSE(blk_filter_enabled);
EXPORT_SYMBOL_GPL(blk_filter_enabled);

struct blk_filter_driver {
	struct list_head list;
	const struct blk_filter_ops *ops;
};

static LIST_HEAD(blk_filter_drivers);
static DEFINE_MUTEX(blk_filter_drivers_lock);

static bool blk_filter_show_bio(struct blk_filter *filter, struct bio *bio,
				struct bio_list *own)
{
	struct block_device *bdev = filter->bdev;
	sector_t start, end;

	start = max(bio->bi_iter.bi_sector, bdev->bd_start_sect);
	end = min(bio_end_sector(bio),
		  bdev->bd_start_sect + bdev_nr_sectors(bdev));
	if (start >= end)
		return false;

	return filter->ops->submit_bio(filter, bio, start - bdev->bd_start_sect,
				       end - start, own);
}

bool __blk_filter_bio(struct bio *bio)
{
	struct gendisk *disk = bio->bi_bdev->bd_disk;
	struct bio_list own = BIO_EMPTY_LIST;
	struct blk_filter *filter;
	bool taken = false;

	if (!bio_sectors(bio))
		return false;

	/*
	 * A task that found the device going on sees what filters have changed
	 * while it was stopped. Pairs with blk_filter_unquiesce().
	 */
	smp_rmb();
	rcu_read_lock();
	hlist_for_each_entry_rcu(filter, &disk->filters, node) {
		taken = blk_filter_show_bio(filter, bio, &own);
		if (taken)
			break;
	}
	rcu_read_unlock();

	/* In ->submit_bio() these are only queued, to current->bio_list. */
	while ((bio = bio_list_pop(&own)))
		submit_bio_noacct(bio);
	return taken;
}
EXPORT_SYMBOL_GPL(__blk_filter_bio);

/*
 * Whether filters see all writes to a device and can wait for those in flight.
 * Zone write plugging and DAX bypass the hook.
 */
static bool blk_filter_supports(struct block_device *bdev)
{
	struct gendisk *disk = bdev->bd_disk;

	if (bdev_is_zoned(bdev) || blk_queue_dax(disk->queue))
		return false;
	return queue_is_mq(disk->queue) || disk->fops->start_quiesce_bios ||
	       (disk->queue->limits.features & BLK_FEAT_SYNC_WRITE);
}

/**
 * blk_filter_start_quiesce - hold new bios of a device's disk back
 * @bdev: the device, to which the caller has a reference
 *
 * Until blk_filter_unquiesce() the caller must not wait for I/O to the disk,
 * open or close devices of it, or take locks that others hold while they wait
 * for such I/O; its allocations are GFP_NOIO. Several devices can be started
 * before the first one is waited for.
 *
 * Context: May sleep.
 * Return: 0, -EOPNOTSUPP if filters do not see all writes to the device, or
 * -EBUSY if it is being suspended or resumed, or is started already and its
 * driver can stop it only once: the caller may try again. With other drivers,
 * it goes on when it was unquiesced as often as it was started.
 */
int blk_filter_start_quiesce(struct block_device *bdev)
{
	struct gendisk *disk = bdev->bd_disk;

	if (!blk_filter_supports(bdev))
		return -EOPNOTSUPP;
	if (disk->fops->start_quiesce_bios)
		return disk->fops->start_quiesce_bios(disk);
	/* An owned freeze has two locks for lockdep, which allows 48 per task. */
	blk_freeze_queue_start_non_owner(disk->queue);
	return 0;
}
EXPORT_SYMBOL_GPL(blk_filter_start_quiesce);

/**
 * blk_filter_wait_quiesce - wait until a device is quiesced
 * @bdev: a device for which blk_filter_start_quiesce() was called
 * @timeout: how long to wait, in jiffies, from 0 to INT_MAX
 *
 * A device is quiesced when all writes that passed the filters of its disk are
 * completed; no filter's ->submit_bio() runs then. It stays quiesced until
 * blk_filter_unquiesce().
 *
 * If it is stacked on another device that was started, its I/O can block in
 * that one. It is quiesced some time after the lower one was unquiesced.
 *
 * Context: May sleep, and no signal ends that. By the task that called
 * blk_filter_start_quiesce().
 * Return: whether the device is quiesced. If not, the caller waits again or
 * calls blk_filter_unquiesce().
 */
bool blk_filter_wait_quiesce(struct block_device *bdev, long timeout)
{
	struct gendisk *disk = bdev->bd_disk;

	if (disk->fops->start_quiesce_bios)
		return disk->fops->wait_quiesce_bios(disk, timeout);
	return blk_mq_freeze_queue_wait_timeout(disk->queue, timeout);
}
EXPORT_SYMBOL_GPL(blk_filter_wait_quiesce);

/**
 * blk_filter_unquiesce - let the bios of a device's disk go on
 * @bdev: a device for which blk_filter_start_quiesce() was called, quiesced or
 *	not
 *
 * Context: May sleep. By the task that called blk_filter_start_quiesce().
 */
void blk_filter_unquiesce(struct block_device *bdev)
{
	struct gendisk *disk = bdev->bd_disk;

	might_sleep();
	/* Pairs with __blk_filter_bio(). */
	smp_wmb();
	if (disk->fops->start_quiesce_bios)
		disk->fops->unquiesce_bios(disk);
	else
		blk_mq_unfreeze_queue_non_owner(disk->queue);
}
EXPORT_SYMBOL_GPL(blk_filter_unquiesce);

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

/* Update BD_HAS_FILTER after a change of the list. */
static void blk_filter_set_flags(struct gendisk *disk)
{
	struct block_device *bdev;
	unsigned long idx;

	lockdep_assert_held(&disk->open_mutex);
	xa_for_each(&disk->part_tbl, idx, bdev) {
		if (hlist_empty(&disk->filters))
			bdev_clear_flag(bdev, BD_HAS_FILTER);
		else
			bdev_set_flag(bdev, BD_HAS_FILTER);
	}
}

static int __blk_filter_attach(struct block_device *bdev,
			       const struct blk_filter_ops *ops,
			       void __user *opt, u32 optlen)
{
	struct gendisk *disk = bdev->bd_disk;
	struct blk_filter *filter;

	lockdep_assert_held(&disk->open_mutex);

	/* A removed partition has left the table, a removed disk is not live. */
	if (!disk_live(disk) ||
	    xa_load(&disk->part_tbl, bdev_partno(bdev)) != bdev)
		return -ENODEV;

	filter = blk_filter_of(bdev);
	if (filter)
		return filter->ops == ops ? -EALREADY : -EBUSY;

	filter = ops->attach(bdev, opt, optlen);
	if (IS_ERR(filter))
		return PTR_ERR(filter);
	filter->ops = ops;
	filter->bdev = bdev;
	refcount_set(&filter->ref, 1);
	hlist_add_head_rcu(&filter->node, &disk->filters);
	blk_filter_set_flags(disk);
	return 0;
}

static void __blk_filter_detach(struct blk_filter *filter)
{
	hlist_del_rcu(&filter->node);
	blk_filter_set_flags(filter->bdev->bd_disk);
	/* Not by a freeze: the queue may be dead, or quiesced for ever. */
	synchronize_rcu();
	blk_filter_put(filter);
}

static int blk_filter_detach(struct block_device *bdev, const char *name)
{
	struct gendisk *disk = bdev->bd_disk;
	struct blk_filter *filter;
	int ret = 0;

	guard(mutex)(&disk->open_mutex);
	filter = blk_filter_of(bdev);
	if (!filter || strcmp(filter->ops->name, name))
		return -ENOENT;
	if (filter->ops->may_detach)
		ret = filter->ops->may_detach(filter);
	if (!ret)
		__blk_filter_detach(filter);
	return ret;
}

static int blk_filter_attach(struct block_device *bdev, const char *name,
			     void __user *opt, u32 optlen)
{
	const struct blk_filter_ops *ops;
	int ret;

	if (!blk_filter_supports(bdev))
		return -EOPNOTSUPP;

	ops = blk_filter_get_driver(name);
	if (!ops)
		return -ENOENT;

	mutex_lock(&bdev->bd_disk->open_mutex);
	ret = __blk_filter_attach(bdev, ops, opt, optlen);
	mutex_unlock(&bdev->bd_disk->open_mutex);
	if (ret)
		module_put(ops->owner);
	return ret;
}

void __blk_filter_drop(struct block_device *bdev)
{
	struct blk_filter *filter = blk_filter_of(bdev);

	if (filter) {
		/* First of all: bios that are on their way do not see it then. */
		if (filter->ops->gone)
			filter->ops->gone(filter);
		__blk_filter_detach(filter);
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
		if (left < len && filter->ops->truncated)
			filter->ops->truncated(filter, left);
	}
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
	if (!strcmp(filter->ops->name, arg->name))
		ret = filter->ops->ctl(filter, arg->cmd,
				       u64_to_user_ptr(arg->opt), arg->optlen);
	blk_filter_put(filter);
	return ret;
}

int __blk_filter_ioctl(struct block_device *bdev, unsigned int cmd,
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

static ssize_t filter_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	struct blk_filter *filter;

	guard(rcu)();
	filter = blk_filter_of(dev_to_bdev(dev));
	return sysfs_emit(buf, "%s\n", filter ? filter->ops->name : "");
}

/* Of disks and of partitions */
DEVICE_ATTR_RO(filter);

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
	static_branch_enable(&blk_filter_enabled);
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
