"""The witness: what an observer outside every victim needs to say what a death cost.

A guest runs a load (:mod:`partitions.child.commands.witness`) that stamps every sector it writes
(:mod:`~vmbus_emu.witness.stamp`), at times fixed beforehand (:mod:`~vmbus_emu.witness.schedule`), and records every
operation in memory that the observer owns and that outlives the guest (:mod:`~vmbus_emu.witness.history`). After the
recovery the observer reads the disk back, and :mod:`~vmbus_emu.witness.check` judges.
"""
