"""Gathering over processes, against the list of what each holds."""

import json
import subprocess
import sys

import numpy as np

from celler._utils._distributed import gather_objects, merged, rank_and_size

CHILD = """
import json, sys
import numpy as np
from torch import distributed
from celler._utils._distributed import gather_objects, merged, rank_and_size
folder, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
found = rank_and_size(), gather_objects({"rank": rank}), merged(np.arange(rank + 1)).tolist()
open(f"{folder}/{rank}", "w").write(json.dumps(found))
distributed.destroy_process_group()
"""


def test_gather_objects_in_one_process():
    part = np.arange(3)
    assert rank_and_size() == (0, 1)
    assert gather_objects(part)[0] is part
    assert merged(part).tolist() == [0, 1, 2]


def test_gather_objects_in_two_processes(tmp_path):
    children = [subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), str(rank)]) for rank in range(2)]
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    for rank in range(2):
        found = json.loads((tmp_path / str(rank)).read_text("utf-8"))
        assert found == [[rank, 2], [{"rank": 0}, {"rank": 1}], [0, 0, 1]]
