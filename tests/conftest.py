"What the tests share"
import os
from pathlib import Path

import pytest


def needs_data(*folders):
    "Mark a test that needs real data, and skip it, saying why, unless `$DLCOURSE_DATA` holds each of `folders`"
    root = os.environ.get('DLCOURSE_DATA')
    missing = [o for o in folders if not (root and (Path(root)/o).exists())]
    skip = pytest.mark.skipif(bool(missing), reason=f"real data not found: $DLCOURSE_DATA has no {', '.join(missing)}")
    return lambda test: pytest.mark.realdata(skip(test))
