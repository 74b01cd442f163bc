"""Prints what TensorBoard reads in the folder of a run, as JSON.

    python read_tensorboard.py RUN_DIR

{"scalars": {TAG: [[step, value], …]}, "text": {TAG: [text, …]}}
"""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

board = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "tensors": 0})
board.Reload()
tags = board.Tags()
scalars = {tag: [[e.step, e.value] for e in board.Scalars(tag)] for tag in tags["scalars"]}
text = {}
for tag in tags["tensors"]:
    plugin = board.SummaryMetadata(tag).plugin_data.plugin_name
    assert plugin == "text", plugin
    values = [make_ndarray(e.tensor_proto) for e in board.Tensors(tag)]
    text[tag] = [value.item().decode() for value in values]
json.dump(dict(scalars=scalars, text=text), sys.stdout)
