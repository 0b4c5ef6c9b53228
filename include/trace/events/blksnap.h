/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tracepoints of blksnap. See Documentation/block/blksnap.rst.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM blksnap

#if !defined(_TRACE_BLKSNAP_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_BLKSNAP_H

#include <linux/types.h>
#include <linux/kdev_t.h>
#include <linux/tracepoint.h>

/* Sectors of a device in a snapshot */
DECLARE_EVENT_CLASS(blksnap_sectors,
	TP_PROTO(dev_t dev, u64 sector, u64 nr_sectors),
	TP_ARGS(dev, sector, nr_sectors),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(u64, sector)
		__field(u64, nr_sectors)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->sector = sector;
		__entry->nr_sectors = nr_sectors;
	),
	TP_printk("%d,%d %llu + %llu",
		  MAJOR(__entry->dev), MINOR(__entry->dev),
		  __entry->sector, __entry->nr_sectors)
);

/* Their old data is going to be read. */
DEFINE_EVENT(blksnap_sectors, blksnap_claim,
	TP_PROTO(dev_t dev, u64 sector, u64 nr_sectors),
	TP_ARGS(dev, sector, nr_sectors)
);

/* Their old data is in memory. */
DEFINE_EVENT(blksnap_sectors, blksnap_saved,
	TP_PROTO(dev_t dev, u64 sector, u64 nr_sectors),
	TP_ARGS(dev, sector, nr_sectors)
);

/* A write to them that was taken goes on. */
DEFINE_EVENT(blksnap_sectors, blksnap_released,
	TP_PROTO(dev_t dev, u64 sector, u64 nr_sectors),
	TP_ARGS(dev, sector, nr_sectors)
);

/* A write of old data to the storage is done. */
TRACE_EVENT(blksnap_stored,
	TP_PROTO(dev_t dev, u64 offset, u64 bytes, u64 duration_ns),
	TP_ARGS(dev, offset, bytes, duration_ns),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(u64, offset)
		__field(u64, bytes)
		__field(u64, duration_ns)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->offset = offset;
		__entry->bytes = bytes;
		__entry->duration_ns = duration_ns;
	),
	TP_printk("%d,%d offset=%llu bytes=%llu duration_ns=%llu",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->offset,
		  __entry->bytes, __entry->duration_ns)
);

/* Old data could not be read. */
TRACE_EVENT(blksnap_lost,
	TP_PROTO(dev_t dev, u64 sector, u64 nr_sectors, int error),
	TP_ARGS(dev, sector, nr_sectors, error),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(u64, sector)
		__field(u64, nr_sectors)
		__field(int, error)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->sector = sector;
		__entry->nr_sectors = nr_sectors;
		__entry->error = error;
	),
	TP_printk("%d,%d %llu + %llu error=%d",
		  MAJOR(__entry->dev), MINOR(__entry->dev),
		  __entry->sector, __entry->nr_sectors, __entry->error)
);

/* The image of a device is broken. */
TRACE_EVENT(blksnap_broken,
	TP_PROTO(dev_t dev, int error),
	TP_ARGS(dev, error),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(int, error)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->error = error;
	),
	TP_printk("%d,%d error=%d",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->error)
);

/* The end of a take. The halves of the id are in the order of its bytes. */
TRACE_EVENT(blksnap_take,
	TP_PROTO(u64 id0, u64 id1, u32 nr_devices, u64 frozen_ns, int error),
	TP_ARGS(id0, id1, nr_devices, frozen_ns, error),
	TP_STRUCT__entry(
		__array(u64, id, 2)
		__field(u32, nr_devices)
		__field(int, error)
		__field(u64, frozen_ns)
	),
	TP_fast_assign(
		__entry->id[0] = id0;
		__entry->id[1] = id1;
		__entry->nr_devices = nr_devices;
		__entry->error = error;
		__entry->frozen_ns = frozen_ns;
	),
	TP_printk("%pUb nr_devices=%u frozen_ns=%llu error=%d", __entry->id,
		  __entry->nr_devices, __entry->frozen_ns, __entry->error)
);

/* The end of a destroy; timed_out if I/O was not waited for any longer. */
TRACE_EVENT(blksnap_destroy,
	TP_PROTO(u64 id0, u64 id1, u8 timed_out),
	TP_ARGS(id0, id1, timed_out),
	TP_STRUCT__entry(
		__array(u64, id, 2)
		__field(u8, timed_out)
	),
	TP_fast_assign(
		__entry->id[0] = id0;
		__entry->id[1] = id1;
		__entry->timed_out = timed_out;
	),
	TP_printk("%pUb timed_out=%u", __entry->id, __entry->timed_out)
);

#endif /* _TRACE_BLKSNAP_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
