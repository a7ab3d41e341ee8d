"What the tests share"
import os
from pathlib import Path

import pytest


def needs_data(*folders):
    "Skip a test, saying why, unless `$DLCOURSE_DATA` holds each of `folders`"
    root = os.environ.get('DLCOURSE_DATA')
    missing = [o for o in folders if not (root and (Path(root)/o).exists())]
    return pytest.mark.skipif(bool(missing), reason=f"real data not found: $DLCOURSE_DATA has no {', '.join(missing)}")
